"""The two clients. They share all but the sending: `calls` says what is sent and read, `exchange` what is tried again."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

import httpx

from penchant import __version__
from penchant.client import calls
from penchant.client.answers import Comparison, Question, Ranking, Scores, Stored, UserInfo
from penchant.client.calls import AnswerT, Call
from penchant.client.exchange import Exchange, Outcome
from penchant.errors import ConfigError

KEY_VARIABLE = "PENCHANT_KEY"
"""The environment variable with the key."""

HttpT = TypeVar("HttpT")
TransportT = TypeVar("TransportT")
SleptT = TypeVar("SleptT")


class _Base(Generic[HttpT, TransportT, SleptT]):
    """What both clients are; `Client` says what the arguments mean."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 5,
        transport: TransportT | None = None,
        sleep: Callable[[float], SleptT] | None = None,
    ) -> None:
        self.url, self.retries = _check_url(url), _check_retries(retries)
        headers = {
            "Authorization": f"Bearer {_check_key(key)}",
            "Accept": "application/json",
            "User-Agent": f"penchant/{__version__}",
        }
        # The time that a call waits for one of the client's own connections is not the service's silence.
        limits = httpx.Timeout(_check_timeout(timeout), pool=None)
        options = {"base_url": self.url, "headers": headers, "timeout": limits, "transport": transport}
        # A proxy that the environment names does not reach a service on this machine.
        self._http: HttpT = self._open(options | {"trust_env": not _is_plain_and_here(self.url)})
        self._sleep = sleep or self._wait

    def __repr__(self) -> str:
        return f"{type(self).__name__}(url={self.url!r}, retries={self.retries})"

    def _open(self, options: dict[str, Any]) -> HttpT:
        raise NotImplementedError

    def _wait(self, seconds: float) -> SleptT:
        raise NotImplementedError


class Client(_Base[httpx.Client, httpx.BaseTransport, None]):
    """The service, for code that waits for answers. Threads may share one. Use it as a context manager, or `close` it.

    Each method raises `ClientError` where the service does not do what is asked: `AuthenticationError` for the key,
    `RequestError` for what was sent, `ServiceUnavailable` where it was busy or away at every attempt. `DataError` says what
    cannot be sent at all.

    Args:
        url: The service's address, with the path under which it stands, if any.
        key: A key of `penchant keys create`; by default the environment's PENCHANT_KEY.
        timeout: Seconds that the service may take to accept a connection, and that it may then be silent.
        retries: How often a call is sent again where the service is busy, away or lost. Nothing is stored twice by that. The
            pauses before it grow from half a second; those of the default are 15 to 27 s together; a longer absence wants more.
        transport: httpx's, for tests and special networks.
        sleep: How to wait, for tests.

    Raises:
        ConfigError: There is no key, or an argument cannot be used.
    """

    def score(self, user: str, prompt: str, responses: Sequence[str]) -> Scores:
        """Scores of responses to one prompt, as the user would give them."""
        return self._send(calls.score(user, prompt, responses))

    def rerank(
        self, user: str | None, query: str, documents: Sequence[str | Mapping[str, Any]], top_n: int | None = None
    ) -> Ranking:
        """Documents (texts, or objects with a `text`), the user's favourite first; without a user, the uniform ranking."""
        return self._send(calls.rerank(user, query, documents, top_n))

    def add_comparisons(self, user: str, comparisons: Sequence[Comparison], *, idempotency_key: str | None = None) -> Stored:
        """Stores choices of a user, all or none; from then on they count.

        Args:
            user: The user's id.
            comparisons: At least one, oldest first.
            idempotency_key: A name for this request, so that sending it again stores nothing more. One is made for each call:
                give your own where you may repeat the call yourself, after a restart for example.
        """
        return self._send(calls.add_comparisons(user, comparisons, idempotency_key))

    def next_comparison(self, user: str) -> Question | None:
        """The question to ask a user next, or None where all have been answered."""
        return self._send(calls.next_comparison(user))

    def user(self, user: str) -> UserInfo:
        """What is known of a user; one whom nobody knows is `unknown`, not an error."""
        return self._send(calls.user_info(user))

    def forget(self, user: str) -> int:
        """Deletes all that is known of a user, and returns how many choices went (0 where an earlier attempt got through)."""
        return self._send(calls.forget(user))

    def ready(self) -> bool:
        """Whether the service would answer a call just now; asked once, and every failure is a no."""
        return self._send(calls.ready())

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, options: dict[str, Any]) -> httpx.Client:
        return httpx.Client(**options)

    def _wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _send(self, call: Call[AnswerT]) -> AnswerT:
        exchange = Exchange(call, self.retries)
        while exchange.goes_on(self._attempt(call)):
            self._sleep(exchange.pause)
        return exchange.answer()

    def _attempt(self, call: Call[Any]) -> Outcome:
        try:
            return self._http.request(**call.request())
        except httpx.RequestError as error:
            return error


class AsyncClient(_Base[httpx.AsyncClient, httpx.AsyncBaseTransport, Awaitable[None]]):
    """`Client` for asyncio: the same arguments, methods and errors. Use it as an async context manager, or `close` it."""

    async def score(self, user: str, prompt: str, responses: Sequence[str]) -> Scores:
        """See `Client.score`."""
        return await self._send(calls.score(user, prompt, responses))

    async def rerank(
        self, user: str | None, query: str, documents: Sequence[str | Mapping[str, Any]], top_n: int | None = None
    ) -> Ranking:
        """See `Client.rerank`."""
        return await self._send(calls.rerank(user, query, documents, top_n))

    async def add_comparisons(
        self, user: str, comparisons: Sequence[Comparison], *, idempotency_key: str | None = None
    ) -> Stored:
        """See `Client.add_comparisons`."""
        return await self._send(calls.add_comparisons(user, comparisons, idempotency_key))

    async def next_comparison(self, user: str) -> Question | None:
        """See `Client.next_comparison`."""
        return await self._send(calls.next_comparison(user))

    async def user(self, user: str) -> UserInfo:
        """See `Client.user`."""
        return await self._send(calls.user_info(user))

    async def forget(self, user: str) -> int:
        """See `Client.forget`."""
        return await self._send(calls.forget(user))

    async def ready(self) -> bool:
        """See `Client.ready`."""
        return await self._send(calls.ready())

    async def close(self) -> None:
        """See `Client.close`."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open(self, options: dict[str, Any]) -> httpx.AsyncClient:
        return httpx.AsyncClient(**options)

    def _wait(self, seconds: float) -> Awaitable[None]:
        return asyncio.sleep(seconds)

    async def _send(self, call: Call[AnswerT]) -> AnswerT:
        exchange = Exchange(call, self.retries)
        while exchange.goes_on(await self._attempt(call)):
            await self._sleep(exchange.pause)
        return exchange.answer()

    async def _attempt(self, call: Call[Any]) -> Outcome:
        try:
            return await self._http.request(**call.request())
        except httpx.RequestError as error:
            return error


def _check_url(url: str) -> str:
    fix = "Give one such as http://127.0.0.1:8000."
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        raise ConfigError("It is no url.", where="url", fix=fix) from None
    if parsed.userinfo:
        # httpx would send these in the place of the key.
        raise ConfigError("The url holds a user name or a password.", where="url", fix="Leave them out; the key says who asks.")
    port = 1 if parsed.port is None else parsed.port
    if parsed.scheme not in {"http", "https"} or not parsed.host or not 0 < port < 65_536 or parsed.query or parsed.fragment:
        raise ConfigError(f"{url!r} is no address of a service.", where="url", fix=fix)
    return str(parsed.copy_with(query=None, fragment=None)).rstrip("/")


def _is_plain_and_here(url: str) -> bool:
    """Whether it is this machine's own address over HTTP; with HTTPS the environment may also say which certificates count."""
    parsed = httpx.URL(url)
    if parsed.scheme != "http":
        return False
    try:
        return ipaddress.ip_address(parsed.host).is_loopback
    except ValueError:
        return parsed.host == "localhost"


def _check_key(key: str | None) -> str:
    """The key, or the environment's. Its own text is in no message."""
    where = KEY_VARIABLE if key is None else "key"
    key = (os.environ.get(KEY_VARIABLE, "") if key is None else key).strip()
    if not key:
        fix = f"Set {KEY_VARIABLE}, or pass key=; `penchant keys create` makes one."
        raise ConfigError("There is no key.", where=where, fix=fix)
    # Anything else could not be a header, and httpx's error would quote it.
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError("The key holds characters that no key has.", where=where, fix="Copy it whole, and nothing else.")
    return key


def _check_timeout(timeout: float) -> float:
    if not (timeout > 0 and math.isfinite(timeout)):
        raise ConfigError(f"It must be seconds above 0 (got {timeout!r}).", where="timeout", fix="Give some, such as 30.")
    return timeout


def _check_retries(retries: int) -> int:
    if retries < 0:
        raise ConfigError(f"It must be 0 or more (got {retries!r}).", where="retries", fix="Give 0 for a single attempt.")
    return retries
