"""What can go wrong between the client and the service. No message holds a key or one of the caller's texts."""

from __future__ import annotations

from penchant.errors import PenchantError


class ClientError(PenchantError, RuntimeError):
    """The service did not do what was asked.

    Args:
        what: The problem, as the service tells it.
        where: The field, header or part of the service that it is about.
        fix: What to do.
        status: The HTTP status; None where there was no answer.
        type: The service's word for programs, such as `invalid_request` or `busy`; empty where it gave none.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", status: int | None = None, type: str = "") -> None:
        super().__init__(what, where=where, fix=fix)
        self.status, self.type = status, type

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.__class__, self.what, self.where, self.fix, self.status, self.type)


def _rebuild(kind: type[ClientError], what: str, where: str, fix: str, status: int | None, word: str) -> ClientError:
    return kind(what, where=where, fix=fix, status=status, type=word)


class AuthenticationError(ClientError):
    """The key is missing, not known, expired or revoked, or may not do this (401, 403)."""


class RequestError(ClientError):
    """What was sent cannot be used, and would not be if it were sent again (every other 4xx)."""


class ServiceUnavailable(ClientError):
    """The service was busy or could not be reached, as often as it was tried. The same call may succeed later."""
