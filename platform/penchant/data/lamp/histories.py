"""Users, what they did, oldest first, and what is asked about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from penchant.data.lamp.tasks import LampTask
from penchant.data.schema import Problem

Date = tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """One item of a history."""

    id: str
    fields: Mapping[str, str]
    """Such as `text` and `score`."""
    date: Date | None = None


@dataclass(frozen=True)
class Query:
    """One question about a user."""

    id: str
    input: str
    """The question as the file words it."""
    fields: Mapping[str, str]
    """What it is about: its subject, read out of the wording."""
    gold: str
    """The answer."""
    seen: int
    """How many of the user's items came before it: it may see `items[:seen]` and no other."""


@dataclass(frozen=True)
class LampUser:
    """A user's history, oldest first, and the questions about this user."""

    user_id: str
    items: tuple[Item, ...]
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class LampData:
    """One task's users."""

    task: LampTask
    targets: Mapping[str, LampUser]
    """By user id: who gets a personal adapter, and is asked about."""
    others: Mapping[str, LampUser]
    """By user id: whom the task adapter is fitted on. No target is among them."""
    warnings: tuple[Problem, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        parts = [
            f"{len(users):,} {name} users ({sum(len(user.items) for user in users.values()):,} items, "
            f"{sum(len(user.queries) for user in users.values()):,} queries)"
            for name, users in (("target", self.targets), ("other", self.others))
        ]
        return f"LampData({self.task.name}, {', '.join(parts)})"


def oldest_first(items: Sequence[Item]) -> tuple[Item, ...]:
    """By date, where there are dates; items of one date, and items without dates, as they stand in the file."""
    if any(item.date is None for item in items):
        return tuple(items)
    return tuple(sorted(items, key=lambda item: item.date or ()))


def seen_at(items: Sequence[Item], date: Date | None) -> int:
    """How many of the items, oldest first, came before a date; all of them where either has no date.

    Dates are compared as finely as both are given, and an item of the very date does not count as before it.
    """
    if date is None or any(item.date is None for item in items):
        return len(items)
    for position, item in enumerate(items):
        assert item.date is not None
        common = min(len(item.date), len(date))
        if item.date[:common] >= date[:common]:
            return position
    return len(items)
