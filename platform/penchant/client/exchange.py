"""A call with all its attempts: which outcome is tried again and when, and which is an error. Nothing here waits or sends."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Generic

import httpx

from penchant.client.calls import AnswerT, Call
from penchant.client.errors import AuthenticationError, ClientError, RequestError, ServiceUnavailable

LONGEST_PAUSE = 30.0
"""Seconds that are waited at most before another attempt, whatever the service asks for; jitter adds up to half as much."""
_FIRST_PAUSE = 0.5
# 502 and 504 are how a gateway tells that it could not connect, or that time ran out.
_BUSY_OR_AWAY = {429, 502, 503, 504}
# What the proxy before the service says, in words that are not the service's, while it starts and where it dies amid a request.
_STARTING_OR_DYING = {404, 500}
_LOST = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)

Outcome = httpx.Response | httpx.RequestError
"""What an attempt brings."""


class Exchange(Generic[AnswerT]):
    """One call and its attempts. Whoever sends asks `goes_on` after each attempt, waits `pause` seconds, and takes the `answer`.

    Args:
        call: What is sent.
        retries: How often it may be sent again.
    """

    pause: float = 0.0

    def __init__(self, call: Call[AnswerT], retries: int) -> None:
        self.call, self._left = call, retries if call.repeated else 0
        self._attempts = 0

    def goes_on(self, outcome: Outcome) -> bool:
        """Whether there is to be another attempt after this one, in `pause` seconds."""
        self._outcome = outcome
        self._attempts += 1
        self.pause = _pause(outcome, self._attempts)
        self._left -= 1
        return self._left >= 0 and _may_pass(outcome)

    def answer(self) -> AnswerT:
        """What the last attempt brought.

        Raises:
            ClientError: It was no success, and the call does not take that for an answer.
        """
        try:
            return self._read()
        except ClientError as error:
            return self.call.rescue(error)

    def _read(self) -> AnswerT:
        outcome = self._outcome
        if isinstance(outcome, httpx.RequestError):
            raise unreached(outcome, self._attempts)
        if not outcome.is_success:
            raise refused(outcome)
        try:
            return self.call.read(outcome)
        except (LookupError, TypeError, ValueError, AttributeError):
            # What was wrong may hold texts of the answer, so it is not passed on.
            raise ClientError(
                "The answer does not have the form of Penchant's.",
                where=_place(outcome.request),
                fix="Look whether the url is the service's, and its version the client's.",
                status=outcome.status_code,
            ) from None


def unreached(error: httpx.RequestError, attempts: int) -> ClientError:
    """The error for an attempt that brought no answer."""
    # The system's own words (refused, no such host) help, and hold nothing of the request; others' might quote a header.
    words = f": {error}" if isinstance(error, httpx.NetworkError) and str(error) else ""
    what = "The service did not answer in time" if isinstance(error, httpx.TimeoutException) else "The service cannot be reached"
    times = f", {attempts} attempts" if attempts > 1 else ""
    kind = ServiceUnavailable if isinstance(error, _LOST) else ClientError
    fix = "Look whether it runs, and at this url."
    return kind(f"{what} ({type(error).__name__}{words}{times}).", where=_place(error.request), fix=fix)


def refused(response: httpx.Response) -> ClientError:
    """The error for an answer that is no success, with the service's own words where it has some."""
    status = response.status_code
    kind: type[ClientError] = ClientError
    if status in {401, 403}:
        kind = AuthenticationError
    elif status in _BUSY_OR_AWAY:
        kind = ServiceUnavailable
    elif 400 <= status < 500:
        kind = RequestError
    trouble = _trouble(response)
    if trouble is not None:
        return kind(trouble["message"], where=trouble["where"], fix=trouble["fix"], status=status, type=trouble["type"])
    # Some other server's answer. Its text is not shown: it may hold what was sent.
    fix = "Look whether the url is the service's."
    return kind(f"The answer is a {status} that is not Penchant's.", where=_place(response.request), fix=fix, status=status)


def _trouble(response: httpx.Response) -> dict[str, str] | None:
    """`error` of a failure's body, or None where the body is not the service's."""
    try:
        trouble = response.json()["error"]
        return {name: str(trouble[name])[:500] for name in ("type", "message", "where", "fix")}
    except (LookupError, TypeError, ValueError):
        return None


def _may_pass(outcome: Outcome) -> bool:
    if isinstance(outcome, httpx.Response):
        status = outcome.status_code
        return status in _BUSY_OR_AWAY or (status in _STARTING_OR_DYING and _trouble(outcome) is None)
    return isinstance(outcome, _LOST)


def _pause(outcome: Outcome, attempt: int) -> float:
    """Seconds before another attempt: twice as many each time, and never fewer than the service asks for.

    It asks for the same few seconds of everybody and at every attempt, so that alone would neither outlast a fault nor spread.
    """
    asked = _retry_after(outcome.headers.get("Retry-After")) if isinstance(outcome, httpx.Response) else None
    pause = min(max(asked or 0.0, _FIRST_PAUSE * 2.0 ** min(attempt - 1, 10)), LONGEST_PAUSE)
    # Jitter: clients that failed together do not come back together.
    return pause * random.uniform(1.0, 1.5)


def _retry_after(value: str | None) -> float | None:
    """Seconds from now, of a number of seconds or an HTTP date (RFC 9110, 10.2.3); None for neither."""
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        instant = parsedate_to_datetime(value)
    except ValueError:
        return None
    # An HTTP date is in GMT, also where it is written -0000.
    return (instant.replace(tzinfo=instant.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def _place(request: httpx.Request) -> str:
    """The service's address; the rest of the path may hold a user's id."""
    return f"{request.url.scheme}://{request.url.netloc.decode()}"
