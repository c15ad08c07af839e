"""The calls of the API: what each sends, and how its answer is read. Nothing here touches the network."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import quote

import httpx

from penchant.client.answers import Comparison, Question, Ranked, Ranking, Scores, Stored, UserInfo
from penchant.client.errors import ClientError
from penchant.errors import DataError

AnswerT = TypeVar("AnswerT")


def _fail(error: ClientError) -> NoReturn:
    raise error


@dataclass(frozen=True)
class Call(Generic[AnswerT]):
    """One call. Every call may be sent again: those that change something say which request they are, or change it once."""

    method: str
    path: str
    read: Callable[[httpx.Response], AnswerT]
    """From an answer that is a success; KeyError, TypeError or ValueError where it has another form."""
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    rescue: Callable[[ClientError], AnswerT] = _fail
    """What a failure means: it is raised, unless it is an answer too."""
    repeated: bool = True
    """Whether it is sent again where the service is busy or away."""

    def request(self) -> dict[str, Any]:
        """What httpx is to send."""
        headers = {"Content-Type": "application/json"} if self.body is not None else {}
        return {"method": self.method, "url": self.path, "content": self.body, "headers": headers | self.headers}


def score(user: str, prompt: str, responses: Sequence[str]) -> Call[Scores]:
    """See `Client.score`."""
    _check_list(responses, "responses")
    body = {"user": user, "prompt": prompt, "responses": list(responses)}
    return Call("POST", "/v1/score", lambda answer: _scores(answer.json(), len(responses)), encode(body))


def rerank(user: str | None, query: str, documents: Sequence[str | Mapping[str, Any]], top_n: int | None) -> Call[Ranking]:
    """See `Client.rerank`."""
    _check_list(documents, "documents")
    texts = [document if isinstance(document, str) else dict(document) for document in documents]
    body = {"user": user, "query": query, "documents": texts, "top_n": top_n}
    return Call("POST", "/v1/rerank", lambda answer: _ranking(answer.json(), len(texts)), encode(body))


def add_comparisons(user: str, comparisons: Sequence[Comparison], idempotency_key: str | None) -> Call[Stored]:
    """See `Client.add_comparisons`. The key is made here, once, so that all attempts carry the same."""
    if idempotency_key is None:
        idempotency_key = str(uuid.uuid4())
    _check_header(idempotency_key)
    choices = [{"prompt": choice.prompt, "chosen": choice.chosen, "rejected": choice.rejected} for choice in comparisons]
    return Call(
        "POST",
        f"/v1/users/{escape(user)}/comparisons",
        _stored,
        encode({"comparisons": choices}),
        headers={"Idempotency-Key": idempotency_key},
    )


def next_comparison(user: str) -> Call[Question | None]:
    """See `Client.next_comparison`."""

    def all_answered(error: ClientError) -> None:
        # A 404 for another reason (the url is not the service's) is about no user.
        if error.status != 404 or error.where != "path.user":
            raise error

    return Call("GET", f"/v1/users/{escape(user)}/next-comparison", lambda answer: _question(answer.json()), rescue=all_answered)


def user_info(user: str) -> Call[UserInfo]:
    """See `Client.user`."""
    return Call("GET", f"/v1/users/{escape(user)}", lambda answer: _user_info(answer.json()))


def forget(user: str) -> Call[int]:
    """See `Client.forget`."""
    return Call("DELETE", f"/v1/users/{escape(user)}", lambda answer: int(answer.json()["comparisons"]))


def ready() -> Call[bool]:
    """See `Client.ready`."""
    return Call("GET", "/readyz", lambda answer: True, rescue=lambda error: False, repeated=False)


def escape(user: str) -> str:
    """A user id as one part of a path: everything that could mean something else is percent-escaped.

    Raises:
        DataError: It is no text, empty, or not UTF-8.
    """
    if not isinstance(user, str) or not user:
        # Without an id the path would be another endpoint's.
        raise DataError("A user id has 1 to 256 characters.", where="user", fix="Give one.")
    try:
        escaped = quote(user, safe="")
    except UnicodeEncodeError:
        raise DataError("It holds half of a surrogate pair, which is no text.", where="user", fix="Give another id.") from None
    # `.` and `..` are steps within a path, and would be taken before anything is sent.
    return escaped.replace(".", "%2E") if escaped in {".", ".."} else escaped


def encode(body: object) -> bytes:
    """A body as JSON. The encoder's own errors hold the text, so they are not passed on.

    Raises:
        DataError: It holds what is no text.
    """
    fix = "Send whole, plain texts."
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise DataError("A text holds half of a surrogate pair.", where="body", fix=fix) from None
    except (TypeError, ValueError):
        raise DataError("It holds something that JSON cannot.", where="body", fix=fix) from None


def _check_list(texts: object, where: str) -> None:
    # A text is a sequence too: of its characters.
    if isinstance(texts, str):
        raise DataError("It is one text.", where=where, fix="Give a list of texts.")


def _check_header(key: str) -> None:
    if not (1 <= len(key) <= 200 and key.isascii() and key.isprintable() and key == key.strip()):
        what = "An idempotency key has 1 to 200 characters of printable ASCII, and no space at its ends."
        raise DataError(what, where="idempotency_key", fix="Give another, or none.")


def _scores(body: Any, count: int) -> Scores:
    items = sorted(body["scores"], key=lambda item: item["index"])
    if [item["index"] for item in items] != list(range(count)):
        raise ValueError("not one score for each response")
    return Scores(
        user=body["user"],
        personalisation=body["personalisation"],
        bundle=body["bundle"],
        scores=tuple(float(item["score"]) for item in items),
        uniform=tuple(float(item["uniform"]) for item in items),
    )


def _ranking(body: Any, count: int) -> Ranking:
    results = tuple(Ranked(int(item["index"]), float(item["relevance_score"])) for item in body["results"])
    if not {result.index for result in results} <= set(range(count)):
        raise ValueError("a document that was not sent")
    meta = body["meta"]
    return Ranking(meta.get("user"), meta["personalisation"], meta["bundle"], results)


def _stored(answer: httpx.Response) -> Stored:
    body = answer.json()
    return Stored(
        user=body["user"],
        version=int(body["version"]),
        comparisons=int(body["comparisons"]),
        personalisation=body["personalisation"],
        bundle=body["bundle"],
        replayed=answer.headers.get("Idempotency-Replayed") == "true",
    )


def _question(body: Any) -> Question:
    first, second = body["responses"]
    return Question(body["user"], body["prompt"], (first, second), float(body["bits"]), body["bundle"])


def _user_info(body: Any) -> UserInfo:
    position = body["position"]
    return UserInfo(
        user=body["user"],
        personalisation=body["personalisation"],
        version=int(body["version"]),
        comparisons=int(body["comparisons"]),
        bundle=body["bundle"],
        position=None if position is None else (float(position[0]), float(position[1])),
    )
