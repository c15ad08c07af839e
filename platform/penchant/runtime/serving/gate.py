"""What stands before the endpoints: paths as they were sent, a bound on bodies, time and status of every request."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

from penchant.runtime.serving.config import LimitSettings
from penchant.runtime.serving.failures import failure, fault
from penchant.runtime.serving.measures import Measures

log = logging.getLogger("penchant.requests")


class Gate:
    """ASGI middleware.

    - A user id may hold slashes and percent escapes: the path is routed as it was sent, so an escaped slash is part of an id.
    - A body is read whole before the endpoint sees it, within bytes and seconds; beyond them, 413 and 408.
    - One line is logged for each request, as JSON, without texts, ids or keys.

    Args:
        app: The endpoints.
        limits: Of bodies.
        measures: What is counted.
    """

    def __init__(self, app: Any, limits: LimitSettings, measures: Measures) -> None:
        self.app, self.limits, self.measures = app, limits, measures

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        raw = scope.get("raw_path")
        if raw:
            scope = {**scope, "path": raw.decode("ascii", "replace").partition("?")[0]}
        started, status = time.perf_counter(), 0
        self.measures.began()

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            body = await self._body(scope, receive)
            if isinstance(body, bytes):
                await self.app(scope, _replay(body, receive), sent)
            else:
                await body(scope, receive, sent)
        except Exception as error:
            if status:  # the answer has begun
                raise
            await fault(error, getattr(scope.get("route"), "path", "none"))(scope, receive, sent)
        finally:
            seconds, route = time.perf_counter() - started, getattr(scope.get("route"), "path", "none")
            status = status or 499  # the client went away, and nobody was answered
            self.measures.ended(route, status, seconds)
            line = {"method": scope["method"], "endpoint": route, "status": status, "ms": round(1000 * seconds, 1)}
            log.info(json.dumps(line))

    async def _body(self, scope: Any, receive: Any) -> Any:
        """The whole body, or the answer that refuses it."""
        limit, path = self.limits.body_bytes, scope.get("path", "")
        too_large = failure(413, f"The body is over {limit:,} bytes.", where="body", fix="Send less at once.", path=path)
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > limit:
            return too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return failure(400, "The body ended too soon.", where="body", fix="Send it whole.", path=path)
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        return too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            seconds = self.limits.body_seconds
            return failure(408, f"The body took over {seconds:g} s.", where="body", fix="Send it faster.", path=path)


def _replay(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body once, and then what the server has to say."""
    given = False

    async def replayed() -> Any:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed
