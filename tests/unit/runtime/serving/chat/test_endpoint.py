"""Chat completions as clients see them; OpenAI's own client against a server that listens."""

import asyncio
import json
import threading
import time

import httpx
import openai
import pytest
import uvicorn

from penchant.errors import ArtifactError, StoreError
from penchant.runtime.serving.service import Busy, Unavailable

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "explain the tides"}]
KEY = (b"k" * 32).hex()


@pytest.fixture(scope="module")
def service(start, tmp_path_factory):
    limits = {"text_characters": 200, "generated_tokens": 40, "prompt_tokens": 30, "candidates": 5, "messages": 4}
    with start(tmp_path_factory.mktemp("chat"), generator={}, **limits) as running:
        yield running


@pytest.fixture(autouse=True)
def no_trouble(service):
    yield
    service.generator.trouble = service.scorer.trouble = None


def ask(service, headers=None, **body):
    values = {"model": "penchant", "messages": MESSAGES, "temperature": 0} | body
    return service.http.post(PATH, json=values, headers=headers)


def written(answer):
    assert answer.status_code == 200, answer.text
    return [choice["message"]["content"] for choice in answer.json()["choices"]]


def trouble(answer, status, param):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"]
    return error


def test_the_answer_has_openais_shape_and_says_how_it_was_personalised(service):
    answer = ask(service, user="ann", max_tokens=5)
    body = answer.json()
    engine = service.generator.engine
    assert body["object"] == "chat.completion"
    assert body["model"] == "penchant"
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
    (choice,) = body["choices"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert choice["message"]["role"] == "assistant"
    assert body["penchant"]["personalisation"] == answer.headers["X-Penchant-Personalisation"] == "own"
    assert (body["penchant"]["base"], body["penchant"]["store"]) == (engine.base, engine.store)
    assert body["penchant"]["ranking"]["by"] == "generation"


def test_users_have_their_own_answers_and_those_without_an_adapter_the_task_models(service):
    answers = {user: ask(service, user=user) for user in ("ann", "bob", "carl/ä", "nobody")}
    answers[None] = ask(service)
    texts = {user: written(answer)[0] for user, answer in answers.items()}
    assert len(set(texts.values())) == 4
    assert texts["nobody"] == texts[None]
    assert [answer.json()["penchant"]["personalisation"] for answer in answers.values()] == ["own"] * 3 + ["task"] * 2


def test_a_tenant_reaches_its_own_users_adapters_alone(service):
    key = service.key("score", tenant="another")
    foreign = ask(service, {"Authorization": f"Bearer {key}"}, user="ann")
    assert foreign.json()["penchant"]["personalisation"] == "task"
    assert written(foreign) == written(ask(service, user="nobody"))


def test_a_user_who_is_forgotten_loses_their_adapter(start, tmp_path):
    with start(tmp_path, generator={}) as service:
        key = service.key("admin", tenant="another")
        service.http.delete("/v1/users/bob", headers={"Authorization": f"Bearer {key}"})
        assert ask(service, user="bob").json()["penchant"]["personalisation"] == "own", "another tenant's bob is another"
        service.http.delete("/v1/users/bob")
        assert ask(service, user="bob").json()["penchant"]["personalisation"] == "task"
        assert "bob" not in service.generator.engine.pool.store


def test_several_answers_come_best_first_by_the_users_own_reward(service, engine):
    answer = ask(service, user="user-0001", n=5, temperature=2, seed=3)
    body = answer.json()
    scores = [choice["penchant"]["score"] for choice in body["choices"]]
    assert scores == sorted(scores, reverse=True)
    assert [choice["index"] for choice in body["choices"]] == list(range(5))
    assert body["penchant"]["ranking"] == {"by": "reward", "personalisation": "seen", "bundle": engine.bundle}
    expected = engine.model.score("user-0001", "explain the tides", written(answer))
    assert scores == pytest.approx(expected.score, abs=1e-4)
    assert body["usage"]["completion_tokens"] == 5 * 6
    assert written(ask(service, user="user-0001", n=5, temperature=2, seed=3)) == written(answer)


@pytest.mark.parametrize("trouble", [Unavailable("No replica could answer."), StoreError("The disk is full.")])
def test_without_a_reward_several_answers_come_as_they_were_written_and_it_says_so(service, trouble):
    service.scorer.trouble = trouble
    body = ask(service, user="ann", n=2).json()
    assert body["penchant"]["ranking"] == {"by": "generation", "personalisation": None, "bundle": None}
    assert [choice["penchant"] for choice in body["choices"]] == [None, None]


def chunks(service, **body):
    with service.http.stream("POST", PATH, json={"model": "penchant", "messages": MESSAGES, "stream": True} | body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return answer, [line.removeprefix("data: ") for line in lines]


def test_what_is_streamed_is_what_is_answered_whole(service):
    whole = written(ask(service, user="ann", n=2, temperature=1, seed=5))
    answer, lines = chunks(service, user="ann", n=2, temperature=1, seed=5, stream_options={"include_usage": True})
    assert answer.headers["X-Penchant-Personalisation"] == "own"
    assert lines[-1] == "[DONE]"
    parsed = [json.loads(line) for line in lines[:-1]]
    assert {each["object"] for each in parsed} == {"chat.completion.chunk"}
    assert len({each["id"] for each in parsed}) == 1
    assert parsed[0]["penchant"]["personalisation"] == "own"
    texts = {0: "", 1: ""}
    finished = []
    for each in parsed[:-1]:
        assert each["usage"] is None
        (choice,) = each["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        finished += [choice["index"]] if choice["finish_reason"] else []
    assert sorted(texts.values()) == sorted(whole)
    assert sorted(finished) == [0, 1]
    assert parsed[-1]["choices"] == []
    assert parsed[-1]["usage"] == {"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16}


def test_a_fault_amid_a_stream_is_told_in_it(service, monkeypatch):
    generate = service.generator.generate

    async def broken(request):
        async for some in generate(request):
            yield some
            raise Unavailable("No replica could answer.", where="generator", fix="Try again.")

    monkeypatch.setattr(service.service.generator, "generate", broken)
    _, lines = chunks(service)
    assert json.loads(lines[-1])["error"]["type"] == "api_error"
    assert "[DONE]" not in lines


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": False}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages.0.name"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 6}, "n"),
        ({"max_tokens": 41}, "max_tokens"),
        ({"max_completion_tokens": 41}, "max_completion_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"user": ""}, "user"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": [{"role": "user", "content": "the " * 30}]}, "messages"),
    ],
)
def test_what_is_not_served_is_refused_by_name(service, body, param):
    error = trouble(ask(service, **body), 400, param)
    assert error["type"] == "invalid_request_error"
    assert param.split(".")[-1] in str(error)


def test_parts_of_messages_that_are_no_texts_are_refused(service):
    parts = [{"type": "image_url", "image_url": {"url": "http://x"}}]
    answer = ask(service, messages=[{"role": "user", "content": parts}])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("messages.0.content")
    read = ask(service, messages=[{"role": "user", "content": [{"type": "text", "text": "explain the tides"}]}])
    assert written(read) == written(ask(service))


@pytest.mark.parametrize(
    "body",
    [
        {"tools": None, "logprobs": False, "frequency_penalty": 0, "presence_penalty": 0.0, "response_format": {"type": "text"}},
        {"n": 1.0, "max_completion_tokens": 6, "max_tokens": 6, "stop": None, "user": None, "stream": False},
        {"messages": [MESSAGES[0] | {"name": None, "tool_calls": None}]},
    ],
)
def test_what_asks_for_nothing_is_taken(service, body):
    assert written(ask(service, **body)) == written(ask(service))


def test_too_much_is_refused(service):
    trouble(ask(service, messages=MESSAGES * 5), 413, "messages")
    trouble(ask(service, messages=[{"role": "user", "content": "x" * 201}]), 413, "messages.0.content")
    answer = service.http.post(PATH, content=b"{" + b" " * 1_048_576, headers={"content-type": "application/json"})
    assert trouble(answer, 413, None)["code"] == "too_large"


def test_another_model_is_not_found_and_the_list_has_the_one_there_is(service):
    error = trouble(ask(service, model="gpt-9"), 404, "model")
    assert "'penchant'" in error["message"]
    listed = service.http.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["penchant"]


def test_without_a_key_nothing_is_told(service):
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer penchant_x"}):
        error = trouble(ask(service, headers), 401, None)
        assert error["type"] == "authentication_error"
    answer = ask(service, {"Authorization": f"Bearer {service.key('onboard')}"})
    assert trouble(answer, 403, None)["type"] == "permission_error"


def test_an_encrypted_adapter_needs_its_users_key_in_a_header(service):
    assert "X-Adapter-Key" in trouble(ask(service, user="locked"), 403, None)["where"]
    trouble(ask(service, {"X-Adapter-Key": "00" * 32}, user="locked"), 403, None)
    trouble(ask(service, {"X-Adapter-Key": "00"}, user="locked"), 400, None)
    opened = ask(service, {"X-Adapter-Key": KEY}, user="locked")
    assert opened.json()["penchant"]["personalisation"] == "own"


def test_pressure_and_absence_are_told_as_such(service):
    service.generator.trouble = Busy("Too many requests are waiting.", where="generator")
    answer = ask(service)
    assert trouble(answer, 429, None)["type"] == "rate_limit_error"
    assert answer.headers["Retry-After"]
    service.generator.trouble = Unavailable("No replica could answer.", where="generator")
    answer = ask(service)
    assert trouble(answer, 503, None)["type"] == "api_error"
    assert answer.headers["Retry-After"]
    service.generator.trouble = ArtifactError("The user's adapter is damaged.", where="body.user")
    answer = ask(service)
    trouble(answer, 500, "user")
    assert answer.headers["x-should-retry"] == "false"


def test_a_service_that_does_not_write_says_how_to_have_it_write(running):
    error = trouble(ask(running), 404, None)
    assert "--adapters" in error["message"]
    assert running.http.get("/v1/models").json()["data"] == []


def test_what_is_counted(service):
    def counted():
        text = service.http.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text if line.startswith("penchant_")}

    base = service.generator.engine.base
    names = [f'penchant_generations_total{{base="{base}",personalisation="{how}"}}' for how in ("own", "task")]
    names += ['penchant_chat_tokens_total{kind="read"}', 'penchant_chat_tokens_total{kind="written"}']
    before = counted()
    ask(service, user="ann")
    chunks(service, user="nobody", n=2, temperature=0)
    after = counted()
    assert [after[name] - before.get(name, 0) for name in names] == [1, 1, 8, 18]
    firsts = {adapter: f'penchant_first_token_seconds_count{{adapter="{adapter}"}}' for adapter in ("cold", "warm", "none")}
    grown = {adapter: after.get(name, 0) - before.get(name, 0) for adapter, name in firsts.items()}
    assert (grown["none"], grown["cold"] + grown["warm"]) == (1, 1)
    assert after['penchant_adapters_total{happened="loaded"}'] >= 1


@pytest.fixture(scope="module")
def client(service):
    """OpenAI's own client, and a server on a port."""
    options = {"host": "127.0.0.1", "port": 0, "log_config": None, "access_log": False, "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(service.http.app, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    key = service.http.headers["Authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0) as made:
        yield made
    server.should_exit = True
    thread.join(10)


def test_openais_client_is_answered(service, client):
    answer = client.chat.completions.create(model="penchant", messages=MESSAGES, user="ann", temperature=0, max_tokens=5)
    assert answer.choices[0].message.content == written(ask(service, user="ann", max_tokens=5))[0]
    assert answer.usage.completion_tokens == 5
    assert answer.penchant["personalisation"] == "own"
    several = client.chat.completions.create(model="penchant", messages=MESSAGES, user="user-0001", n=3)
    assert several.choices[0].penchant["score"] >= several.choices[2].penchant["score"]
    assert [model.id for model in client.models.list()] == ["penchant"]


def test_openais_client_reads_streams(service, client):
    asked = {"model": "penchant", "messages": MESSAGES, "user": "ann", "temperature": 0}
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    said = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in said if chunk.choices)
    assert text == written(ask(service, user="ann"))[0]
    assert said[-1].usage.completion_tokens == 6
    assert said[0].penchant["personalisation"] == "own"


def test_openais_client_knows_the_errors(service, client):
    asked = {"model": "penchant", "messages": MESSAGES}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked, tools=[])
    assert refused.value.param == "tools"
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(**asked, user="locked")
    opened = client.chat.completions.create(**asked, user="locked", extra_headers={"X-Adapter-Key": KEY})
    assert opened.penchant["personalisation"] == "own"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**asked | {"model": "another"})
    service.generator.trouble = Busy("Too many requests are waiting.", where="generator")
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**asked)


def test_a_client_that_hangs_up_amid_a_stream_is_let_go(service, client):
    body = {"model": "penchant", "messages": MESSAGES, "stream": True, "max_tokens": 40, "n": 5}
    with httpx.stream("POST", f"{client.base_url}chat/completions", json=body, headers=service.http.headers) as answer:
        next(answer.iter_lines())
    engine, deadline = service.generator.engine, time.monotonic() + 20
    while engine._room.free < engine.settings.rows or engine._loop._decoder.rows:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_several_users_at_once_have_their_own(service):
    expected = {user: written(ask(service, user=user))[0] for user in ("ann", "bob", "carl/ä", "nobody")}

    async def at_once():
        transport = httpx.ASGITransport(app=service.http.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=service.http.headers) as http:
            body = {"model": "penchant", "messages": MESSAGES, "temperature": 0}
            users = list(expected) * 6
            answers = await asyncio.gather(*(http.post(PATH, json=body | {"user": user}) for user in users))
        return zip(users, answers, strict=True)

    for user, answer in asyncio.run(at_once()):
        assert written(answer) == [expected[user]]
