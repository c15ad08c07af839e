"""Parts of histories: what came before the queries, what is near to them or far from them, and the latest items as queries."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from penchant.adapters.tasks.prompts import PROMPTS
from penchant.data.lamp import Item, LampData, LampTask, LampUser, Query
from penchant.errors import ConfigError

Part = Literal["all", "near", "far"]
"""Of a history: all of it, the latest items, or the oldest."""
On = Literal["queries", "history"]
"""What is asked: the queries, or the latest items of the histories."""


def cut_history(user: LampUser, start: int, stop: int) -> LampUser:
    """The user with `items[start:stop]` alone; the queries see no other."""
    queries = tuple(replace(query, seen=max(0, min(query.seen, stop) - start)) for query in user.queries)
    return LampUser(user.user_id, user.items[start:stop], queries)


def fitted_history(user: LampUser, part: Part = "all", share: float = 0.5) -> LampUser:
    """The user with what an adapter may be fitted on: items that came before every query, or a share of them.

    Args:
        part: `near` and `far` are as many items, so that they differ in nothing but their time.
        share: Of the items, for `near` and `far`.
    """
    before = min((query.seen for query in user.queries), default=len(user.items))
    count = before if part == "all" else math.ceil(share * before)
    start = before - count if part == "near" else 0
    return cut_history(user, start, start + count)


def ask_about_history(data: LampData, share: float) -> LampData:
    """The latest items of each target as queries, which see the earlier ones alone: to choose settings without the queries.

    Raises:
        ConfigError: The task's items do not have what its questions ask about.
    """
    if PROMPTS[data.task.name].item_instruction:
        raise ConfigError(
            f"Past items of {data.task.name} are not what its questions ask about.",
            where="on",
            fix="Ask the queries: --on queries.",
        )
    return replace(data, targets={name: _asked(data.task, user, share) for name, user in data.targets.items()})


def _asked(task: LampTask, user: LampUser, share: float) -> LampUser:
    user = fitted_history(user)
    kept = len(user.items) - math.floor(share * len(user.items))
    held = [item for item in user.items[kept:] if not task.labels or item.fields[task.answer] in task.labels]
    return LampUser(user.user_id, user.items[:kept], tuple(_query(task, item, kept) for item in held))


def _query(task: LampTask, item: Item, seen: int) -> Query:
    subject = PROMPTS[task.name].subject
    return Query(item.id, "", {name: item.fields[name] for name in subject}, item.fields[task.answer].strip(), seen)
