"""The endpoints as a client sees them."""

import asyncio
import datetime
import json
import time
from dataclasses import replace

import numpy as np
import pytest

from penchant.data.choices import TextComparison
from penchant.errors import StoreError
from penchant.runtime.serving.config import LimitSettings
from penchant.runtime.serving.gate import Gate
from penchant.runtime.serving.measures import Measures
from penchant.runtime.serving.service import Busy, Unavailable
from penchant.scoring.model import ResolvedUser

CHOICE = ("Explain tides.", "Step one: look up. Step two: wait.", "What a lovely question, dear reader!")


def problem(answer, status):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"type", "message", "where", "fix"}
    assert error["message"].endswith((".", ")"))
    return error


def test_a_seen_user_has_scores_of_their_own_and_an_unknown_one_uniform_ones(running, engine):
    seen = running.score("user-0001").json()
    assert seen["personalisation"] == "seen"
    assert seen["bundle"] == engine.bundle
    assert [item["index"] for item in seen["scores"]] == [0, 1]
    expected = engine.model.score("user-0001", "Explain tides.", ["Step one: begin.", "Have a lovely day, dear reader."])
    assert [item["score"] for item in seen["scores"]] == pytest.approx(expected.score, abs=1e-5)
    unknown = running.score("nobody").json()
    assert unknown["personalisation"] == "unknown"
    assert all(item["score"] == item["uniform"] for item in unknown["scores"])
    assert [item["uniform"] for item in unknown["scores"]] == [item["uniform"] for item in seen["scores"]]


def test_one_comparison_personalises_and_deletion_ends_it(running):
    before = running.score("ana").json()
    stored = running.choose("ana", CHOICE).json()
    assert stored == {"user": "ana", "version": 1, "comparisons": 1, "personalisation": "onboarded", "bundle": before["bundle"]}
    after = running.score("ana").json()
    assert after["personalisation"] == "onboarded"
    assert [item["score"] for item in after["scores"]] != [item["score"] for item in before["scores"]]
    known = running.http.get("/v1/users/ana").json()
    assert (known["comparisons"], known["version"], known["personalisation"]) == (1, 1, "onboarded")
    assert len(known["position"]) == 2
    assert running.http.delete("/v1/users/ana").json() == {"user": "ana", "comparisons": 1}
    assert running.score("ana").json()["scores"] == before["scores"]
    assert running.http.get("/v1/users/ana").json()["position"] is None


def test_an_onboarded_user_is_embedded_once_and_again_only_under_a_new_bundle(running, engine):
    running.choose("bo", CHOICE)
    running.scorer.calls.clear()
    first = running.score("bo").json()
    assert running.scorer.calls == ["score"], "the store has the embedding"
    # Under a bundle that has never heard of the user, the comparisons are replayed, once.
    name, engine.bundle = engine.bundle, "another"
    try:
        running.scorer.calls.clear()
        replayed = running.score("bo").json()
        assert running.scorer.calls == ["score", "score"]
        assert replayed["scores"] == first["scores"]
        running.scorer.calls.clear()
        assert running.score("bo").json()["scores"] == first["scores"]
        assert running.scorer.calls == ["score"]
    finally:
        engine.bundle = name


def test_a_seen_user_who_is_forgotten_is_unknown_and_may_come_back(running):
    assert running.score("user-0002").json()["personalisation"] == "seen"
    assert running.http.delete("/v1/users/user-0002").status_code == 200
    assert running.score("user-0002").json()["personalisation"] == "unknown"
    running.choose("user-0002", CHOICE)
    assert running.score("user-0002").json()["personalisation"] == "onboarded"


def test_the_same_idempotency_key_stores_once_and_another_body_is_refused(running):
    headers = {"Idempotency-Key": "k-1"}
    first = running.choose("cy", CHOICE, headers=headers)
    again = running.choose("cy", CHOICE, headers=headers)
    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert running.http.get("/v1/users/cy").json()["comparisons"] == 1
    other = running.choose("cy", ("Another prompt.", "a", "b"), headers=headers)
    assert problem(other, 422)["where"] == "Idempotency-Key"


def test_what_is_stored_is_acknowledged_though_no_replica_answers(running):
    running.scorer.trouble = Unavailable("No replica could answer.")
    # What is known of the user is read before, from the store alone.
    stored = running.choose("di", CHOICE)
    assert stored.status_code == 200
    assert stored.headers["Server-Timing"] == "model;dur=0.00"
    assert stored.json()["personalisation"] == "unknown"
    assert problem(running.score("di"), 503)["type"] == "unavailable"
    assert running.score("di").headers["Retry-After"]
    running.scorer.trouble = None
    assert running.score("di").json()["personalisation"] == "onboarded"


def test_what_is_stored_is_acknowledged_whatever_ails_the_scorer(running):
    running.scorer.trouble = TypeError("nobody has thought of this")
    stored = running.choose("kim", CHOICE)
    assert stored.status_code == 200, stored.text
    assert stored.json()["personalisation"] == "unknown"
    assert [choice.user for choice in running.store.export()] == ["kim"]


def test_a_replica_is_asked_once_while_the_store_writes(running, monkeypatch):
    add, during = running.store.add, []

    def noted(*arguments, **named):
        time.sleep(0.2)
        during.append(list(running.scorer.calls))
        return add(*arguments, **named)

    monkeypatch.setattr(running.store, "add", noted)
    for count in range(8):  # more than comparisons_per_user, and the last pair twice
        running.scorer.calls.clear()
        stored = running.choose("eve", (f"Prompt {min(count, 6)}.", "Step one: begin.", "Dear reader!"))
        assert float(stored.headers["Server-Timing"].removeprefix("model;dur=")) > 0
        assert stored.json()["personalisation"] == "onboarded"
        assert during.pop() == running.scorer.calls == ["onboard"]


def test_what_another_client_wrote_meanwhile_counts(running, monkeypatch):
    """The second of two clients asks a replica before the first one's choice is stored."""
    add, other = running.store.add, TextComparison("Name a fruit.", "Apple.", "Such a sweet question!")

    def after_another(tenant, user, *arguments, **named):
        add(tenant, user, [other])
        return add(tenant, user, *arguments, **named)

    monkeypatch.setattr(running.store, "add", after_another)
    stored = running.choose("flo", CHOICE).json()
    assert (stored["comparisons"], stored["personalisation"]) == (2, "onboarded")
    assert running.scorer.calls == ["onboard", "onboard"]
    texts = ["Step one: begin.", "Have a lovely day, dear reader."]
    own = running.score("flo", texts).json()["scores"]
    both = [TextComparison(other.prompt, other.chosen, other.rejected), TextComparison(*CHOICE)]
    model = running.scorer.engine.model
    user = ResolvedUser("flo", "onboarded", model.embed_choices({"flo": both})["flo"])
    expected, _ = model.score_texts([user], np.zeros(2, int), [("Explain tides.", text) for text in texts])
    assert [item["score"] for item in own] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_user_who_is_deleted_while_a_choice_is_stored_stays_unknown(running, monkeypatch):
    add = running.store.add

    def deleted_after(tenant, user, *arguments, **named):
        receipt = add(tenant, user, *arguments, **named)
        running.store.forget(tenant, user)
        return receipt

    monkeypatch.setattr(running.store, "add", deleted_after)
    stored = running.choose("hal", CHOICE)
    assert stored.status_code == 200
    assert stored.json()["personalisation"] == "unknown"
    assert running.score("hal").json()["personalisation"] == "unknown"


def test_a_choice_that_is_not_stored_is_not_acknowledged_though_a_replica_answered(running, monkeypatch):
    def refuse(*arguments, **named):
        raise StoreError("The disk is full; nothing was stored.")

    monkeypatch.setattr(running.store, "add", refuse)
    problem(running.choose("gus", CHOICE), 503)
    assert running.score("gus").json()["personalisation"] == "unknown"


def test_next_comparison_asks_what_has_not_been_answered(running):
    asked = set()
    for _ in range(4):
        question = running.http.get("/v1/users/el/next-comparison").json()
        pair = (question["prompt"], *sorted(question["responses"]))
        assert pair not in asked
        assert 0 <= question["bits"] <= 1
        asked.add(pair)
        running.choose("el", (question["prompt"], *question["responses"]))


def test_a_bundle_without_questions_says_so_and_not_that_they_are_answered(running, engine, monkeypatch):
    monkeypatch.setattr(engine.model, "parts", replace(engine.model.parts, questions=None))
    error = problem(running.http.get("/v1/users/el/next-comparison"), 404)
    assert error["where"] == f"bundle {engine.bundle}", "at path.user, clients take it that all are answered"
    assert "no questions" in error["message"]


def test_rerank_takes_the_published_requests_of_cohere_and_jina(running):
    documents = ["Step one: begin.", "Have a lovely day, dear reader.", "Be careful: it is dangerous."]
    cohere = {"model": "rerank-v3.5", "query": "Explain tides.", "documents": documents, "top_n": 2, "max_tokens_per_doc": 4096}
    jina = {"model": "jina-reranker-v2", "query": "Explain tides.", "documents": [{"text": text} for text in documents]}
    for path in ("/v1/rerank", "/v2/rerank"):
        uniform = running.http.post(path, json=cohere).json()
        assert len(uniform["results"]) == 2
        assert uniform["meta"]["personalisation"] == "unknown"
        own = running.http.post(path, json=jina | {"user": "user-0001", "return_documents": True}).json()
        relevance = [result["relevance_score"] for result in own["results"]]
        assert relevance == sorted(relevance, reverse=True)
        assert all(0 < value < 1 for value in relevance)
        scores = running.score("user-0001", documents).json()["scores"]
        assert [result["index"] for result in own["results"]] == sorted(range(3), key=lambda row: -scores[row]["score"])
        assert own["results"][0]["document"]["text"] == documents[own["results"][0]["index"]]


@pytest.mark.parametrize(
    "user", ["a/b", "../../etc/passwd", "100%", "a b", "mañana 🙂", "عربى", "' OR 1=1 --", "next-comparison"]
)
def test_any_readable_id_is_a_user(running, user):
    from urllib.parse import quote

    path = quote(user, safe="")
    assert running.choose(path, CHOICE).json()["user"] == user
    assert running.http.get(f"/v1/users/{path}").json()["comparisons"] == 1
    assert running.score(user).json()["personalisation"] == "onboarded"
    assert running.http.delete(f"/v1/users/{path}").json()["comparisons"] == 1


@pytest.mark.parametrize(
    ("body", "status", "where"),
    [
        ({}, 422, "body.user"),
        ({"user": "a", "prompt": "p", "responses": []}, 422, "body.responses"),
        ({"user": "a", "prompt": " ", "responses": ["x"]}, 422, "body.prompt"),
        ({"user": "a", "prompt": "p", "responses": ["x", None]}, 422, "body.responses.1"),
        ({"user": "a", "prompt": "p", "responses": ["x\x00"]}, 422, "body.responses.0"),
        ({"user": "a", "prompt": "p", "responses": ["x"] * 9}, 413, "body.responses"),
        ({"user": "a", "prompt": "p", "responses": ["x" * 2001]}, 413, "body.responses.0"),
        ({"user": "a", "prompt": "p", "responses": ["x"], "extra": 1}, 422, "body.extra"),
        ({"user": "a" * 257, "prompt": "p", "responses": ["x"]}, 422, "body.user"),
        ({"user": "a", "prompt": "p", "responses": ["x" * 2000] * 11}, 413, "body"),
    ],
)
def test_bad_requests_say_what_and_where(running, body, status, where):
    assert problem(running.http.post("/v1/score", json=body), status)["where"] == where


@pytest.mark.parametrize("text", [b'"\\ud800"', b'"a\\u0000"'])
def test_half_a_surrogate_and_nul_are_refused(running, text):
    body = b'{"user": "a", "prompt": "p", "responses": [' + text + b"]}"
    answer = running.http.post("/v1/score", content=body, headers={"content-type": "application/json"})
    assert problem(answer, 422)["where"] == "body.responses.0"


@pytest.mark.parametrize("rejected", ["same", "same ", "\n\N{NO-BREAK SPACE}same"])
def test_chosen_and_rejected_must_differ_in_more_than_the_space_around_them(running, rejected):
    error = problem(running.choose("x", ("p", "same", rejected)), 422)
    assert error["where"] == "body.comparisons.0"
    assert "same text" in error["message"]


@pytest.mark.parametrize("path", ["/v1/users/%00", "/v1/users/%ff", f"/v1/users/{'a' * 257}", "/v1/users/%20"])
def test_ids_that_cannot_be_stored_are_refused(running, path):
    assert problem(running.http.get(path), 422)["where"] == "path.user"


def test_keys_are_needed_and_have_scopes_and_ends(running):
    def refused(key, status, path="/v1/users/a", method="GET"):
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {"Authorization": ""}
        return problem(running.http.request(method, path, headers=headers), status)

    assert refused(None, 401)["where"] == "Authorization"
    assert "not known" in refused("penchant_nothing", 401)["message"]
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)
    assert "expired" in refused(running.key("admin", expires=past), 401)["message"]
    record, secret = running.store.create_key("default", ["score"], name="", expires=None)
    assert "score" in refused(secret, 403, method="DELETE")["message"]
    running.store.revoke_key(record.id)
    assert "revoked" in refused(secret, 401)["message"]


def test_a_tenant_sees_its_own_users_alone(running):
    running.choose("fay", CHOICE)
    headers = {"Authorization": f"Bearer {running.key('score', 'onboard', 'admin', tenant='other')}"}
    assert running.score("fay", headers=headers).json()["personalisation"] == "unknown"
    assert running.score("user-0001", headers=headers).json()["personalisation"] == "unknown", "the bundle is of another tenant"
    assert running.http.delete("/v1/users/fay", headers=headers).json()["comparisons"] == 0
    assert running.score("fay").json()["personalisation"] == "onboarded"
    assert all("user" not in point for point in running.http.get("/v1/bundle", headers=headers).json()["map"])


def test_somebody_forgotten_is_not_on_the_map(running):
    shown = running.http.get("/v1/bundle").json()["map"]
    user = shown[0]["user"]
    running.http.delete(f"/v1/users/{user}")
    assert running.http.get("/v1/bundle").json()["map"] == [point for point in shown if point["user"] != user]
    headers = {"Authorization": f"Bearer {running.key('score', tenant='other')}"}
    assert len(running.http.get("/v1/bundle", headers=headers).json()["map"]) == len(shown) - 1


def test_pressure_and_a_store_that_is_gone_are_answered_with_when_to_try_again(running, monkeypatch, caplog):
    running.scorer.trouble = Busy("Too many requests are waiting.")
    answer = running.score("user-0001")
    assert problem(answer, 429)["type"] == "busy"
    assert int(answer.headers["Retry-After"]) >= 1
    running.scorer.trouble = None

    def gone(*arguments, **named):
        raise StoreError("The database does not answer.", where="postgresql://host/db", fix="Try again.")

    monkeypatch.setattr(running.store, "user", gone)
    answer = running.score("user-0001")
    error = problem(answer, 503)
    assert (error["type"], error["where"]) == ("unavailable", "store"), "where it is, the log says"
    assert "postgresql://host" in caplog.text
    assert answer.headers["Retry-After"]


def test_a_fault_of_ours_is_no_traceback_and_its_log_says_where_but_quotes_nothing(running, monkeypatch, caplog):
    monkeypatch.setattr(running.service, "score", lambda tenant, user, prompt, responses: {}[prompt])
    error = problem(running.score("user-0001"), 500)
    assert "Explain tides" not in json.dumps(error) + caplog.text
    assert "KeyError in /v1/score" in caplog.text
    assert "test_api.py" in caplog.text
    assert 'status="500"' in running.http.get("/metrics").text


def test_who_goes_away_before_the_answer_is_not_counted_as_a_fault_of_ours():
    async def app(scope, receive, send):
        raise asyncio.CancelledError

    async def receive():
        return {"type": "http.request"}

    measures = Measures()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Gate(app, LimitSettings(), measures)({"type": "http", "method": "GET", "headers": []}, receive, None))
    assert 'status="499"' in str(measures.text())


def test_a_path_tells_all_of_its_methods(running):
    answer = running.http.request("OPTIONS", "/v1/users/a%2Fb")
    assert problem(answer, 405)["where"] == "OPTIONS /v1/users/a%2Fb"
    assert answer.headers["Allow"] == "DELETE, GET"


def test_a_pair_that_is_answered_twice_in_a_request_is_one_new_choice(running, monkeypatch):
    asked = []
    onboard = running.scorer.onboard
    monkeypatch.setattr(running.scorer, "onboard", lambda *given: asked.append(given[-1]) or onboard(*given))
    prompt, one, other = CHOICE
    running.choose("zoe", ("Explain fog.", one, other))
    running.choose("zoe", (prompt, other, one), CHOICE)
    assert asked == [1, 1], "the earlier choice is not held against what it has taught"
    bundle = running.scorer.engine.bundle
    assert f'penchant_new_comparisons_total{{bundle="{bundle}"}} 2.0' in running.http.get("/metrics").text


def test_probes_metrics_and_the_log_hold_no_texts_ids_or_keys(running, caplog):
    caplog.set_level("WARNING", logger="httpx2")  # the test's own client, not the service
    caplog.set_level("INFO", logger="penchant")
    running.choose("gus-the-secret", CHOICE)
    running.score("gus-the-secret")
    assert running.http.get("/healthz").text == "ok\n"
    assert running.http.get("/readyz").text == "ready\n"
    metrics = running.http.get("/metrics").text
    bundle = running.scorer.engine.bundle
    assert f'penchant_score_requests_total{{bundle="{bundle}",personalisation="onboarded"}} 1.0' in metrics
    assert f'penchant_new_comparisons_total{{bundle="{bundle}"}} 1.0' in metrics
    assert 'endpoint="/v1/users/{user}/comparisons",status="200"' in metrics.replace('le="0.002",', "")
    everything = metrics + caplog.text
    assert "gus-the-secret" not in everything
    assert "Step one" not in everything
    assert running.http.headers["Authorization"][7:] not in everything
    assert '"endpoint": "/v1/score", "status": 200' in caplog.text


def test_the_openapi_names_every_endpoint_with_its_refusals(running):
    described = running.http.get("/openapi.json").json()
    paths = described["paths"]
    assert {"/v1/score", "/v1/rerank", "/v1/users/{user}", "/v1/users/{user}/comparisons", "/healthz"} <= set(paths)
    assert set(paths["/v1/score"]["post"]["responses"]) >= {"200", "401", "403", "413", "422", "429", "503"}
    assert paths["/v1/score"]["post"]["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/Failure")
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
