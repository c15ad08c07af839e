"""Both clients against a service whose every answer is written down: one suite, run for each."""

import asyncio
import inspect
import pickle
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from penchant.client import (
    AsyncClient,
    AuthenticationError,
    Client,
    ClientError,
    Comparison,
    Question,
    Ranked,
    Ranking,
    RequestError,
    Scores,
    ServiceUnavailable,
    Stored,
    UserInfo,
)
from penchant.errors import DataError, PenchantError
from penchant.runtime.serving import schemas

KEY = "penchant_secret-of-the-test"
TEXT = "A text that nobody else may read."
CHOICE = Comparison("Why?", chosen="Because.", rejected="Who knows.")
CALLS = {
    "score": ("ana", "Why?", ["Because.", "Who knows."]),
    "rerank": ("ana", "Why?", ["Because.", "Who knows."]),
    "add_comparisons": ("ana", [CHOICE]),
    "next_comparison": ("ana",),
    "user": ("ana",),
    "forget": ("ana",),
}
STORED = schemas.Stored(user="ana", version=4, comparisons=7, personalisation="onboarded", bundle="b1")


def ok(answer: schemas.BaseModel, **headers: str) -> httpx.Response:
    return httpx.Response(200, json=answer.model_dump(mode="json"), headers=headers)


def failure(status: int, type: str = "busy", where: str = "body.prompt", **headers: str) -> httpx.Response:
    trouble = schemas.Trouble(type=type, message="It is wrong.", where=where, fix="Mend it.")
    return httpx.Response(status, json=schemas.Failure(error=trouble).model_dump(), headers=headers)


class Caller:
    """A client of either kind, what it sent and how long it waited."""

    def __init__(self, kind, outcomes, **options):
        self.requests, self.pauses, self.outcomes = [], [], list(outcomes)
        self.client = kind(
            "http://service.test", KEY, transport=httpx.MockTransport(self._outcome), sleep=self._sleeper(kind), **options
        )

    def __getattr__(self, name):
        method = getattr(self.client, name)

        def call(*arguments, **named):
            answer = method(*arguments, **named)
            return asyncio.run(answer) if inspect.isawaitable(answer) else answer

        return call

    def _outcome(self, request):
        self.requests.append(request)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        # Of its own: a response is bound to the request that it answers, and parameters are shared.
        return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)

    def _sleeper(self, kind):
        async def sleep(seconds):
            self.pauses.append(seconds)

        return self.pauses.append if kind is Client else sleep


@pytest.fixture(params=[Client, AsyncClient])
def connect(request):
    return lambda *outcomes, **options: Caller(request.param, outcomes, **options)


# What is sent, and how answers are read.


def test_score(connect):
    items = [schemas.ScoreItem(index=number, score=number + 0.5, uniform=-number) for number in range(2)]
    caller = connect(ok(schemas.ScoreResult(user="ana", personalisation="seen", bundle="b1", scores=items)))
    assert caller.score("ana", "Why?", ("Because.", "Who knows.")) == Scores("ana", "seen", "b1", (0.5, 1.5), (0.0, -1.0))
    (request,) = caller.requests
    body = schemas.ScoreBody.model_validate_json(request.content)
    assert (request.method, request.url, body.user, body.prompt, body.responses) == (
        "POST",
        "http://service.test/v1/score",
        "ana",
        "Why?",
        ["Because.", "Who knows."],
    )
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("user", ["ana", None])
def test_rerank(connect, user):
    meta = {"api_version": {"version": "1"}, "personalisation": "unknown", "bundle": "b1", "user": user}
    items = [schemas.RerankItem(index=1, relevance_score=0.9), schemas.RerankItem(index=0, relevance_score=0.2)]
    answer = schemas.RerankResult(id="r", results=items, meta=meta).model_dump(exclude_none=True)
    caller = connect(httpx.Response(200, json=answer))
    ranking = caller.rerank(user, "Why?", ["Because.", {"text": "Who knows.", "id": 7}], top_n=2)
    assert ranking == Ranking(user, "unknown", "b1", (Ranked(1, 0.9), Ranked(0, 0.2)))
    body = schemas.RerankBody.model_validate_json(caller.requests[0].content)
    assert (caller.requests[0].url.path, body.user, body.top_n) == ("/v1/rerank", user, 2)
    assert body.documents == ["Because.", "Who knows."]


def test_add_comparisons(connect):
    caller = connect(ok(STORED), ok(STORED, **{"Idempotency-Replayed": "true"}))
    assert caller.add_comparisons("ana", [CHOICE]) == Stored("ana", 4, 7, "onboarded", "b1", replayed=False)
    assert caller.add_comparisons("ana", [CHOICE]).replayed
    (choice,) = schemas.ComparisonsBody.model_validate_json(caller.requests[0].content).comparisons
    assert Comparison(choice.prompt, choice.chosen, choice.rejected) == CHOICE
    first, second = (request.headers["Idempotency-Key"] for request in caller.requests)
    assert first != second, "another call is another request"


def test_next_comparison(connect):
    answer = schemas.NextComparison(user="ana", prompt="Why?", responses=("a", "b"), bits=0.5, bundle="b1")
    question = connect(ok(answer)).next_comparison("ana")
    assert question == Question("ana", "Why?", ("a", "b"), 0.5, "b1")
    assert question.answer(1) == Comparison("Why?", chosen="b", rejected="a")
    assert connect(failure(404, "not_found", where="path.user")).next_comparison("ana") is None


@pytest.mark.parametrize("answer", [failure(404, "not_found", where="GET /v1/users/ana"), httpx.Response(404, text="nginx")])
def test_another_404_is_not_the_end_of_the_questions(connect, answer):
    with pytest.raises(RequestError):
        connect(answer, retries=0).next_comparison("ana")


@pytest.mark.parametrize("position", [(0.5, -1.0), None])
def test_user(connect, position):
    answer = schemas.UserResult(user="ana", personalisation="seen", version=2, comparisons=3, bundle="b1", position=position)
    assert connect(ok(answer)).user("ana") == UserInfo("ana", "seen", 2, 3, "b1", position)


def test_forget(connect):
    caller = connect(ok(schemas.Forgotten(user="ana", comparisons=5)))
    assert caller.forget("ana") == 5
    assert caller.requests[0].method == "DELETE"


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (httpx.Response(200, text="ready\n"), True),
        (failure(503), False),
        (httpx.Response(404), False),
        (httpx.ConnectError("refused"), False),
    ],
)
def test_ready_is_asked_once(connect, outcome, expected):
    caller = connect(outcome)
    assert caller.ready() is expected
    assert [request.url.path for request in caller.requests] == ["/readyz"]
    assert caller.pauses == []


@pytest.mark.parametrize(
    ("user", "path"),
    [
        ("a/b", b"a%2Fb"),
        ("50%", b"50%25"),
        ("50%25", b"50%2525"),
        ("\N{CAT FACE}", b"%F0%9F%90%B1"),
        ("a b?c#d+e:f", b"a%20b%3Fc%23d%2Be%3Af"),
        (".", b"%2E"),
        ("..", b"%2E%2E"),
        ("../..", b"..%2F.."),
    ],
)
def test_ids_are_escaped_whole(connect, user, path):
    caller = connect(ok(schemas.Forgotten(user=user, comparisons=0)), ok(STORED))
    caller.forget(user)
    caller.add_comparisons(user, [CHOICE])
    assert [request.url.raw_path for request in caller.requests] == [b"/v1/users/" + path, b"/v1/users/" + path + b"/comparisons"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("forget", ("",)),
        ("forget", (7,)),
        ("user", ("\ud800",)),
        ("score", ("ana", TEXT + "\ud800", ["a"])),
        ("score", ("ana", "Why?", TEXT)),
        ("score", ("ana", "Why?", [object()])),
        ("rerank", ("ana", "Why?", TEXT)),
        ("rerank", ("ana", "Why?", [{"text": TEXT, "weight": float("nan")}])),
    ],
)
def test_what_cannot_be_sent_is_said_before_it_is(connect, name, arguments):
    caller = connect()
    with pytest.raises(DataError) as caught:
        getattr(caller, name)(*arguments)
    assert caller.requests == []
    assert TEXT not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "the encoder's error holds the text"


@pytest.mark.parametrize("key", ["", " spaced ", "k\u00e9y", "a\nb", "x" * 201])
def test_an_idempotency_key_is_a_header(connect, key):
    caller = connect()
    with pytest.raises(DataError):
        caller.add_comparisons("ana", [CHOICE], idempotency_key=key)
    assert caller.requests == []


# What is tried again.


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "first",
    [
        failure(429),
        failure(503),
        httpx.Response(504),
        httpx.Response(404, text="Path '/v1/score' not found."),  # of a proxy that knows no service yet
        httpx.Response(500, text="Internal Server Error"),  # of a proxy whose replica died amid the request
        httpx.ConnectError("no"),
        httpx.ReadTimeout(""),
    ],
)
def test_every_call_is_tried_again(connect, name, first):
    refusal = failure(422, "invalid_request")
    caller = connect(first, refusal)
    with pytest.raises(RequestError):
        getattr(caller, name)(*CALLS[name])
    one, other = caller.requests
    assert (one.method, one.url, one.content, one.headers) == (other.method, other.url, other.content, other.headers)
    assert len(caller.pauses) == 1


@pytest.mark.parametrize("given", [None, "order-7"])
def test_the_idempotency_key_is_the_same_at_each_attempt(connect, given):
    caller = connect(httpx.ReadTimeout(""), failure(503), httpx.RemoteProtocolError(""), ok(STORED))
    caller.add_comparisons("ana", [CHOICE], idempotency_key=given)
    keys = {request.headers["Idempotency-Key"] for request in caller.requests}
    assert len(caller.requests) == 4
    assert len(keys) == 1
    assert given is None or keys == {given}


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("asked", "low", "high"),
    [
        ("7", 7, 10.5),
        ("0", 0.5, 0.75),
        ("3600", 30, 45),
        ("9" * 400, 30, 45),
        (20, 10, 30),
        (-20, 0.5, 0.75),
        (3600, 30, 45),
        ("soon", 0.5, 0.75),
        ("-3", 0.5, 0.75),
        ("", 0.5, 0.75),
    ],
)
def test_the_first_pause_is_no_shorter_than_the_service_asks_for(connect, status, asked, low, high):
    asked = http_date(asked) if isinstance(asked, int) else asked
    caller = connect(failure(status, **{"Retry-After": asked}), ok(schemas.Forgotten(user="ana", comparisons=0)))
    caller.forget("ana")
    (pause,) = caller.pauses
    assert low <= pause <= high


def test_pauses_grow_where_nobody_answers(connect):
    caller = connect(*[httpx.ConnectError("no")] * 13, retries=12)
    with pytest.raises(ServiceUnavailable):
        caller.forget("ana")
    assert len(caller.pauses) == 12
    for attempt, pause in enumerate(caller.pauses):
        shortest = min(0.5 * 2**attempt, 30)
        assert shortest <= pause <= 1.5 * shortest
    assert len({pause / min(0.5 * 2**attempt, 30) for attempt, pause in enumerate(caller.pauses)}) > 1, "there is jitter"


def test_pauses_grow_and_differ_where_the_service_asks_for_the_same_seconds(connect):
    clients = [connect(*[failure(503, **{"Retry-After": "2"})] * 6) for _ in range(2)]
    for caller in clients:
        with pytest.raises(ServiceUnavailable):
            caller.add_comparisons("ana", [CHOICE])
        assert all(low <= pause <= 1.5 * low for low, pause in zip((2, 2, 2, 4, 8), caller.pauses, strict=True))
    assert clients[0].pauses != clients[1].pauses, "clients that failed together do not come back together"


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("outcome", [failure(503), failure(429), httpx.ConnectTimeout("")])
def test_retries_end(connect, retries, outcome):
    caller = connect(*[outcome] * (retries + 1), retries=retries)
    with pytest.raises(ServiceUnavailable):
        caller.score(*CALLS["score"])
    assert len(caller.requests) == retries + 1
    assert len(caller.pauses) == retries


@pytest.mark.parametrize(
    "outcome",
    [failure(400), failure(404), failure(500), httpx.Response(301), httpx.LocalProtocolError(KEY), httpx.ProxyError("")],
)
def test_what_would_not_get_better_is_not_tried_again(connect, outcome):
    caller = connect(outcome)
    with pytest.raises(ClientError) as caught:
        caller.score(*CALLS["score"])
    assert not isinstance(caught.value, ServiceUnavailable)
    assert KEY not in str(caught.value)


# Errors.


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, AuthenticationError),
        (403, AuthenticationError),
        (400, RequestError),
        (404, RequestError),
        (409, RequestError),
        (413, RequestError),
        (422, RequestError),
        (429, ServiceUnavailable),
        (503, ServiceUnavailable),
        (500, ClientError),
    ],
)
def test_an_error_tells_what_the_service_told_and_survives_a_process(connect, status, kind):
    with pytest.raises(kind) as caught:
        connect(failure(status, "word"), retries=0).score(*CALLS["score"])
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert type(error) is kind
        assert (error.status, error.type, error.what, error.where, error.fix) == (
            status,
            "word",
            "It is wrong.",
            "body.prompt",
            "Mend it.",
        )
        assert str(error) == "body.prompt: It is wrong. Mend it."
        assert isinstance(error, PenchantError)
        assert isinstance(error, RuntimeError)


@pytest.mark.parametrize(
    "body",
    [TEXT.encode(), b"", b"[]", b'{"error": "%s"}' % TEXT.encode(), b'{"error": {"message": "%s"}}' % TEXT.encode(), b"\xff"],
)
def test_another_servers_failure_is_an_error_without_its_text(connect, body):
    with pytest.raises(ServiceUnavailable) as caught:
        connect(httpx.Response(503, content=body), retries=0).score("ana", TEXT, ["a"])
    assert caught.value.status == 503
    assert caught.value.type == ""
    assert caught.value.where == "http://service.test"
    assert TEXT not in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b"{}", b'{"scores": [{}]}', b"\xff"])
@pytest.mark.parametrize("name", CALLS)
def test_a_success_of_another_form_is_an_error(connect, name, body):
    with pytest.raises(ClientError, match="form of Penchant's") as caught:
        getattr(connect(httpx.Response(200, content=body)), name)(*CALLS[name])
    assert caught.value.status == 200


@pytest.mark.parametrize("indices", [[0], [0, 2], [0, 0], [0, 1, 2]])
def test_a_score_for_each_response_or_none(connect, indices):
    items = [schemas.ScoreItem(index=index, score=0, uniform=0) for index in indices]
    with pytest.raises(ClientError):
        connect(ok(schemas.ScoreResult(user="ana", personalisation="seen", bundle="b", scores=items))).score(*CALLS["score"])


def test_scores_are_put_in_order(connect):
    items = [schemas.ScoreItem(index=index, score=index, uniform=0) for index in (1, 0)]
    caller = connect(ok(schemas.ScoreResult(user="ana", personalisation="seen", bundle="b", scores=items)))
    assert caller.score(*CALLS["score"]).scores == (0.0, 1.0)


def test_a_lost_connection_says_where_and_how_often(connect):
    with pytest.raises(ServiceUnavailable) as caught:
        connect(*[httpx.ConnectError("[Errno 111] Connection refused")] * 2, retries=1).user("ana")
    assert caught.value.status is None
    assert str(caught.value).startswith("http://service.test: The service cannot be reached (ConnectError: [Errno 111]")
    assert "2 attempts" in str(caught.value)
