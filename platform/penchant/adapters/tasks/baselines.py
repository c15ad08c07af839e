"""What needs no model: the answer that a user has given most often, and the stars given on average."""

from __future__ import annotations

from collections import Counter

from penchant.data.lamp import LampTask, LampUser


def majority(task: LampTask, user: LampUser) -> list[str] | None:
    """For each query of the user, the commonest answer of the items before it; of two as common, the later given.

    None where past items hold no such answer: texts to write, and LaMP_1, whose items name papers. Where a query sees no
    item, the answer is blank, and counts as wrong.
    """
    if task.kind == "generation" or task.answer == "citation":
        return None
    given = [item.fields[task.answer] for item in user.items]
    # Counter keeps the order of first appearance among equals: read from the latest on.
    return [next((label for label, _ in Counter(given[: query.seen][::-1]).most_common(1)), "") for query in user.queries]


def mean_rating(task: LampTask, user: LampUser) -> list[str] | None:
    """For each query of the user, the mean stars of the items before it; 3 where it sees none. None for other tasks."""
    if task.kind != "rating":
        return None
    stars = [int(item.fields[task.answer]) for item in user.items]
    return [f"{sum(stars[: query.seen]) / query.seen:.3f}" if query.seen else "3" for query in user.queries]
