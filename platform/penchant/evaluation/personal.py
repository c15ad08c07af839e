"""Scores of personal answers: every metric of a task, with intervals from a bootstrap over users, and paired differences.

A user's queries hang together, so users are drawn, not queries. All rows are judged on the same draws: that makes their
differences paired.

Shapes: Q queries, U users, B resamples, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penchant.adapters.asking import Outputs
from penchant.adapters.tasks.metrics import per_query, score
from penchant.adapters.tasks.outputs import read_output
from penchant.data.lamp import LampTask
from penchant.evaluation.metrics import interval

AGAINST = "base"
"""The row that the others are compared with: the task base, which is not personalised."""
LOWER_IS_BETTER = frozenset({"mae", "rmse"})
FEWEST_USERS = 5
"""With fewer there is no verdict: a bootstrap over so few is too narrow, and over one it has no width at all."""


@dataclass(frozen=True)
class Judged:
    """A metric of one row's answers."""

    value: float
    drawn: np.ndarray
    """(B,): in each resample."""


class UserBootstrap:
    """Judges rows of answers to the same queries on the same draws of users.

    Args:
        task: Whose metrics.
        golds: User -> the answers to the user's queries, in order; each user has at least one.
        resamples: B.
        seed: Fixes the draws.
    """

    def __init__(self, task: LampTask, golds: Outputs, *, resamples: int = 1000, seed: int = 0) -> None:
        self.task, self.golds = task, golds
        self.user_Q = np.repeat(np.arange(len(golds)), [len(answers) for answers in golds.values()])
        self.gold_Q = [gold for answers in golds.values() for gold in answers]
        random = np.random.default_rng(seed)
        self.draws_BU = random.multinomial(len(golds), np.full(len(golds), 1 / len(golds)), size=resamples).astype(np.float64)

    def judge(self, outputs: Mapping[str, Sequence[str]]) -> dict[str, Judged]:
        """Every metric of the task.

        Raises:
            ValueError: A user's answers are not as many as the user's queries.
        """
        output_Q = [text for user in self.golds for text in outputs[user]]
        values = score(self.task, output_Q, self.gold_Q)
        parts = per_query(self.task, output_Q, self.gold_Q)
        sources: dict[str, Callable[[], np.ndarray]] = {
            "mae": lambda: self._mean(parts["absolute_error"]),
            "rmse": lambda: np.sqrt(self._mean(parts["squared_error"])),
            "macro_f1": lambda: self._macro_f1(output_Q),
        }
        return {
            name: Judged(value, sources.get(name, lambda name=name: self._mean(parts[name]))()) for name, value in values.items()
        }  # type: ignore[misc]

    def _sums(self, value_Q: np.ndarray) -> np.ndarray:
        sum_U = np.zeros((len(self.golds), *value_Q.shape[1:]))
        np.add.at(sum_U, self.user_Q, value_Q)
        drawn: np.ndarray = self.draws_BU @ sum_U
        return drawn

    def _mean(self, value_Q: np.ndarray) -> np.ndarray:
        return self._sums(value_Q) / self._sums(np.ones(len(value_Q)))

    def _macro_f1(self, output_Q: Sequence[str]) -> np.ndarray:
        labels = np.array(self.task.labels)
        said_QL = np.array([read_output(self.task, text) for text in output_Q])[:, None] == labels
        gold_QL = np.array(self.gold_Q)[:, None] == labels
        right_BL = self._sums((said_QL & gold_QL).astype(np.float64))
        both_BL = self._sums(said_QL.astype(np.float64)) + self._sums(gold_QL.astype(np.float64))
        share = np.divide(2 * right_BL, both_BL, out=np.zeros_like(right_BL), where=both_BL > 0)
        mean_B: np.ndarray = share.mean(1)
        return mean_B


def judge_rows(
    task: LampTask, golds: Outputs, rows: Mapping[str, Outputs], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The table of a group of users: row -> metric -> value, low, high, and `difference` to `AGAINST` with low and high.

    Args:
        golds: User -> answers; who has no query is left out.
        rows: Name -> what was answered, to at least these users. `AGAINST` is one of them.
    """
    golds = {user: answers for user, answers in golds.items() if answers}
    bootstrap = UserBootstrap(task, golds, resamples=resamples, seed=seed)
    judged = {name: bootstrap.judge(outputs) for name, outputs in rows.items()}
    table = {}
    for name, metrics in judged.items():
        table[name] = {metric: _cell(found, judged[AGAINST][metric], name != AGAINST) for metric, found in metrics.items()}
    return {"users": len(golds), "queries": len(bootstrap.gold_Q), "rows": table}


def _cell(found: Judged, against: Judged, compared: bool) -> dict[str, Any]:
    low, high = interval(found.drawn)
    cell: dict[str, Any] = {"value": found.value, "low": low, "high": high}
    if compared:
        low, high = interval(found.drawn - against.drawn)
        cell["difference"] = {"value": found.value - against.value, "low": low, "high": high}
    return cell


def verdict(metric: str, difference: Mapping[str, float], users: int) -> str:
    """`better`, `worse` or `no difference shown`: whether a paired interval excludes 0, and on which side.

    Of fewer than `FEWEST_USERS` users it is `too few users`.
    """
    if users < FEWEST_USERS:
        return "too few users"
    if difference["low"] <= 0 <= difference["high"]:
        return "no difference shown"
    return "better" if (difference["value"] < 0) == (metric in LOWER_IS_BETTER) else "worse"


def activity_groups(items: Mapping[str, int], buckets: int) -> dict[str, list[str]]:
    """Users by how many items they have, in groups of about as many users; users with as many items stay together."""
    edges = np.unique(np.quantile(list(items.values()), np.linspace(0, 1, buckets + 1)[1:-1]))
    bucket = np.searchsorted(edges, list(items.values()), side="left")
    groups: dict[str, list[str]] = {}
    for number in np.unique(bucket):
        users = [user for user, own in zip(items, bucket, strict=True) if own == number]
        counts = [items[user] for user in users]
        span = f"{min(counts):,} to {max(counts):,}" if min(counts) < max(counts) else f"{min(counts):,}"
        groups[f"{span} items"] = users
    return groups
