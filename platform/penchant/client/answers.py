"""What the client sends and what it gives back: plain frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Personalisation = Literal["seen", "onboarded", "unknown"]
"""How a user is known: from training, from their stored choices, or not at all (then scores are uniform ones)."""


@dataclass(frozen=True)
class Comparison:
    """One choice: `chosen` over `rejected`, two responses to `prompt`."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Scores:
    """Scores of responses to one prompt, in the order in which they were sent."""

    user: str
    personalisation: Personalisation
    """`unknown`: nobody knows the user, and `scores` are the uniform ones."""
    bundle: str
    """The bundle that answered."""
    scores: tuple[float, ...]
    """The user's own; higher is preferred, and only differences mean something."""
    uniform: tuple[float, ...]
    """What the model without users says."""


@dataclass(frozen=True)
class Ranked:
    """A document's place in a ranking."""

    index: int
    """Its place among the documents that were sent."""
    relevance: float
    """sigmoid(score), between 0 and 1."""


@dataclass(frozen=True)
class Ranking:
    """Documents by a user's preference, best first."""

    user: str | None
    """None: the uniform ranking was asked for."""
    personalisation: Personalisation
    bundle: str
    results: tuple[Ranked, ...]


@dataclass(frozen=True)
class Stored:
    """Choices that are stored, and count from now on."""

    user: str
    version: int
    """Of what is known about the user; grows with every change."""
    comparisons: int
    """How many there are now."""
    personalisation: Personalisation
    """`unknown`: they are stored, and the model could not be asked just now; the next score will use them."""
    bundle: str | None
    """The bundle that onboarded the user, or None."""
    replayed: bool
    """Whether an earlier request under the same idempotency key had stored them already."""


@dataclass(frozen=True)
class Question:
    """Two responses whose comparison is expected to tell most about a user."""

    user: str
    prompt: str
    responses: tuple[str, str]
    bits: float
    """What the answer is expected to tell, 1 at most."""
    bundle: str

    def answer(self, chosen: Literal[0, 1]) -> Comparison:
        """The comparison to store where the user chose the first (0) or the second (1) response."""
        return Comparison(self.prompt, chosen=self.responses[chosen], rejected=self.responses[1 - chosen])


@dataclass(frozen=True)
class UserInfo:
    """What is known of a user."""

    user: str
    personalisation: Personalisation
    version: int
    """0 where nothing is stored."""
    comparisons: int
    """How many choices are stored."""
    bundle: str
    position: tuple[float, float] | None
    """Where the user stands on the map of users."""
