"""What passes between the API and whatever writes: a request, and what becomes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from penchant.adapters.applying import How
from penchant.errors import PenchantError

Finish = Literal["stop", "length"]


class KeyNeeded(PenchantError, PermissionError):
    """An adapter is encrypted, and the request has no key that opens it."""

    __str__ = PenchantError.__str__


@dataclass(frozen=True)
class GenerationRequest:
    """A chat to be continued."""

    user: str
    """Whose adapter; empty for the task model."""
    messages: tuple[dict[str, str], ...] = field(repr=False)
    """Each with `role` and `content`."""
    candidates: int = 1
    max_tokens: int | None = None
    """Of each candidate; None: the generator's default."""
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    """Whether events are sent as they come, or all together at the end."""
    key: bytes | None = field(default=None, repr=False)
    """The user's, where the adapter is encrypted."""


@dataclass(frozen=True)
class Started:
    """The first event: the prompt is read, and by whose adapter it goes on."""

    how: How
    base: str
    """Fingerprint of the base."""
    store: str
    """Fingerprint of what adapters of this store are."""
    prompt_tokens: int
    cold: bool = False
    """Whether the adapter was not in memory."""


@dataclass(frozen=True)
class Piece:
    """Text of a candidate."""

    index: int
    text: str
    tokens: int
    """Of the candidate so far."""
    finish: Finish | None = None


@dataclass(frozen=True)
class Ended:
    """The last event."""

    seconds: float
    """From the request's arrival at the replica."""
    first_token_seconds: float
    """Until the first token was there."""
    rows: int
    """Answers that were written side by side when the first token came."""
    loads: int
    """Adapters that the replica has read since it last said so; each is counted once."""
    evictions: int
    """Adapters that made room for others since then."""


Event = Started | Piece | Ended


class Generator(Protocol):
    """The writing replicas, as the API sees them."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[list[Event]]:
        """What becomes of a request.

        Raises:
            Busy: Too many wait already.
            Unavailable: No replica can answer, or the one that did has gone.
            DataError: The prompt is too long.
            KeyNeeded: The adapter is encrypted, and there is no key, or another one.
            ArtifactError: The adapter is damaged.
        """

    async def forget(self, user: str) -> bool:
        """Deletes a user's adapter; whether there was one."""

    async def check(self) -> None:
        """Whether a replica answers."""
