"""From what went wrong to an HTTP answer: one body for all, which says what, where and what to do."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from penchant.errors import ArtifactError, ConfigError, DataError, PenchantError, StoreError
from penchant.runtime.serving.chat.events import KeyNeeded
from penchant.runtime.serving.chat.schemas import CHAT_PATH, ChatFailure, ChatTrouble
from penchant.runtime.serving.schemas import Failure, Trouble
from penchant.runtime.serving.service import Absent, Busy, Unavailable

log = logging.getLogger(__name__)

_KINDS = {
    400: "invalid_request",
    401: "unauthorised",
    403: "forbidden",
    404: "not_found",
    405: "invalid_request",
    408: "invalid_request",
    413: "too_large",
    422: "invalid_request",
    429: "busy",
    503: "unavailable",
}
_OPENAI_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},  # or a client that sends drop by drop would keep it open
    429: {"Retry-After": "1"},
    503: {"Retry-After": "2"},
}
_STATUS: list[tuple[type[PenchantError], int]] = [
    (Busy, 429),
    (Absent, 404),
    (Unavailable, 503),
    (StoreError, 503),
    (KeyNeeded, 403),
    (DataError, 422),
    (ConfigError, 422),
]


class Refusal(PenchantError, ValueError):
    """A request that is refused, with its HTTP status."""

    def __init__(self, status: int, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where=where, fix=fix)
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        return _refusal, (self.status, self.what, self.where, self.fix)


def _refusal(status: int, what: str, where: str, fix: str) -> Refusal:
    return Refusal(status, what, where=where, fix=fix)


def failure(status: int, what: str, *, where: str = "", fix: str = "", path: str = "") -> JSONResponse:
    """An answer that is not a success.

    Args:
        path: Of the request: chat completions fail in the shape that OpenAI's clients read.
    """
    kind = _KINDS.get(status, "invalid_request" if status < 500 else "unavailable")
    if path != CHAT_PATH:
        body = Failure(error=Trouble(type=kind, message=what, where=where, fix=fix))
        return JSONResponse(body.model_dump(), status, _HEADERS.get(status))
    return JSONResponse(chat_failure(status, what, where=where, fix=fix).model_dump(), status, _HEADERS.get(status))


def chat_failure(status: int, what: str, *, where: str = "", fix: str = "") -> ChatFailure:
    """The same as OpenAI's clients read it."""
    kind = _OPENAI_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    param = where.removeprefix("body.") if where.startswith("body.") else None
    code = _KINDS.get(status, "invalid_request" if status < 500 else "unavailable")
    return ChatFailure(
        error=ChatTrouble(message=f"{what} {fix}".strip(), type=kind, param=param, code=code, where=where, fix=fix)
    )


def chat_status(status: int) -> int:
    """What cannot be used is 400 with OpenAI, and 422 elsewhere here."""
    return 400 if status == 422 else status


def status_of(error: PenchantError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, Refusal):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def told_place(error: PenchantError) -> str:
    """Where an error is, as callers may know it: not the store's file, or its host and database, which go to the log."""
    if not isinstance(error, StoreError):
        return error.where
    log.warning("the store failed, at %s: %s", error.where, error.what)
    return "store"


def fault(error: Exception, where: str) -> JSONResponse:
    """The answer to a fault of ours. What an exception says may quote a text or an id: only its kind and place are logged."""
    log.error("%s in %s\n%s", type(error).__name__, where, "".join(traceback.format_tb(error.__traceback__)).rstrip())
    fix = "Try again; the log has the rest."
    return failure(500, "Something went wrong in the service.", where=where, fix=fix, path=where)


def handle_failures(app: FastAPI) -> None:
    """Makes every error that a request can cause an answer of that form."""

    @app.exception_handler(PenchantError)
    async def ours(request: Request, error: PenchantError) -> JSONResponse:
        answer = refused(request, status_of(error), error.what, where=told_place(error), fix=error.fix)
        if isinstance(error, ArtifactError):
            answer.headers["x-should-retry"] = "false"  # OpenAI's clients send a 500 again; a damaged file stays damaged
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(_printable(part) for part in first["loc"])
        what = _sentence(first)
        more = len(error.errors()) - 1
        what += f" ({more} more problem{'s' if more > 1 else ''})" if more else ""
        return refused(request, 422, what, where=where, fix="See /docs.")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's, for what Python's JSON reader chokes on
            return refused(request, 400, "It is no JSON in UTF-8, or nests too deep.", where="body", fix="See /docs.")
        where = f"{request.method} {_printable(request.url.path)}"
        answer = refused(request, error.status_code, f"{error.detail}.", where=where, fix="See /docs.")
        if error.status_code == 405:
            answer.headers["Allow"] = ", ".join(_methods(app, request))
        return answer


def refused(request: Request, status: int, what: str, *, where: str, fix: str) -> JSONResponse:
    """`failure`, in the shape of the request's endpoint."""
    path = request.url.path
    return failure(chat_status(status) if path == CHAT_PATH else status, what, where=where, fix=fix, path=path)


def _methods(app: FastAPI, request: Request) -> list[str]:
    """What may be done at this path: Starlette tells the methods of one route, and a path may have several."""
    matching = [route for route in app.router.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})


def _sentence(problem: Any) -> str:
    if problem["type"] == "json_invalid":
        return f"It is no JSON: {problem['ctx']['error']}."
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message[0].upper() + message[1:].rstrip(".") + "."


def _printable(part: object) -> str:
    return str(part).encode("utf-8", "replace").decode()[:200]
