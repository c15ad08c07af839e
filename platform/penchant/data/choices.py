"""A user's choice by its texts, as whoever has no ids of responses knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TextComparison:
    """One choice of a user: `chosen` over `rejected`, two responses to `prompt`. Any text."""

    prompt: str
    chosen: str
    rejected: str


def latest_comparisons(comparisons: Sequence[TextComparison]) -> list[TextComparison]:
    """The last choice on each pair, whichever way it went, in order: whoever changes their mind has one opinion."""
    latest = {(choice.prompt, frozenset((choice.chosen, choice.rejected))): row for row, choice in enumerate(comparisons)}
    return [comparisons[row] for row in sorted(latest.values())]
