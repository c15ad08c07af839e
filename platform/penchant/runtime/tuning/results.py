"""The trials of a sweep, read back from its journal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penchant.artifacts import fingerprint
from penchant.errors import TrainingError
from penchant.runtime.tuning.space import Choice, Value

FINISHED, STOPPED, OUT_OF_TIME, FAILED, RUNNING = "finished", "stopped early", "out of time", "failed", "running"


@dataclass
class TrialRow:
    """One trial."""

    trial: str
    number: int
    """In the order in which they were started, from 1."""
    values: dict[str, Value]
    """By dotted key."""
    state: str = RUNNING
    reason: str = ""
    """Why it failed."""
    failures: int = 0
    looks: list[dict[str, Any]] = field(default_factory=list)
    """`step` and `valid_accuracy` of each look."""
    accuracy: float | None = None
    """The best of its looks; None before the first."""
    compared: int = 0
    """Validation comparisons of a look."""
    parameters: int | None = None
    step_seconds: float | None = None
    seconds: float = 0.0
    """From being given its resources to its end, all tries."""
    training_seconds: float = 0.0
    """Of these, in the steps and looks of its last stage."""
    shared_seconds: float = 0.0
    """Of these, making what trials share, or waiting for it."""

    @property
    def steps(self) -> int:
        """Steps that it came to."""
        return max((look["step"] for look in self.looks), default=0)

    @property
    def standard_error(self) -> float:
        """Of the accuracy, as of so many independent comparisons: choices of one user or prompt go together, so it is more."""
        # With experts it is the heads' accuracy on all comparisons and a gain on a few, which together may come to more than 1.
        accuracy = min(1.0, max(0.0, self.accuracy or 0.0))
        return math.sqrt(accuracy * (1 - accuracy) / self.compared) if self.compared else 0.0

    @property
    def counts(self) -> bool:
        """Whether it may be chosen."""
        return self.accuracy is not None and self.state != FAILED


def read_trials(records: Iterable[Mapping[str, Any]]) -> list[TrialRow]:
    """The trials, in the order in which they were started. One that began again has the looks of its last beginning.

    Trials are told apart by their values, which the search never proposes twice: a trial that Ray Tune had not yet saved when it
    was killed comes again under another name.
    """
    rows: dict[str, TrialRow] = {}
    named: dict[str, TrialRow] = {}
    began: dict[str, float] = {}
    for record in records:
        name, event = record.get("trial", ""), record["event"]
        if event == "started" or (event == "failed" and name not in named):
            row = rows.setdefault(fingerprint(record["values"]), TrialRow(name, len(rows) + 1, record["values"]))
            row.trial, row.state, row.reason, row.looks, row.accuracy = name, RUNNING, "", [], None
            named[name], began[name] = row, record["at"]
        if event != "started" and name in named and named[name].trial == name:
            _follow(named[name], record)
            if "at" in record:
                named[name].seconds += record["at"] - began.pop(name, record["at"])
    return list(rows.values())


def _follow(row: TrialRow, record: Mapping[str, Any]) -> None:
    event = record["event"]
    if event == "look":
        row.looks.append({"step": record["step"], "valid_accuracy": record["valid_accuracy"]})
        for key in ("accuracy", "compared", "parameters", "step_seconds", "training_seconds", "shared_seconds"):
            setattr(row, key, record[key])
    elif event == "stopped":
        row.state = STOPPED
    elif event == "completed" and row.state == RUNNING:
        row.state = OUT_OF_TIME if record["out_of_time"] else FINISHED
    elif event == "failed":
        row.state, row.reason, row.failures = RUNNING if record["again"] else FAILED, record["reason"], row.failures + 1


def refused(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many proposals could not be, by reason."""
    return dict(Counter(record["reason"] for record in records if record["event"] == "refused"))


def ranked(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Those that may be chosen, best first: by the best look of each, whatever its budget; of equals the earlier."""
    return sorted((row for row in rows if row.counts), key=lambda row: (-(row.accuracy or 0.0), row.number))


def best_of(rows: Sequence[TrialRow], choose: Choice = "one_standard_error") -> TrialRow:
    """The trial to fit: the most accurate, or the one that trains fewest parameters of those within a standard error of it.

    Of equals the more accurate, then the earlier: the first trial has the values that the settings have already.
    The rule is that of Breiman et al. (Classification and Regression Trees, 1984, section 3.4.3).

    Raises:
        TrainingError: None came to a look.
    """
    found = ranked(rows)
    if found:
        most = found[0]
        least = (most.accuracy or 0.0) - most.standard_error
        close = [row for row in found if (row.accuracy or 0.0) >= least] if choose == "one_standard_error" else [most]
        return min(close, key=lambda row: row.parameters or 0)  # of equals the first
    reasons = [row.reason for row in rows if row.reason]
    raise TrainingError(
        f"No trial came to a look at the validation comparisons. {reasons[0] if reasons else ''}".strip(),
        where=f"{len(rows)} trials",
        fix="Give more time, or a smaller asha.first." if not reasons else "Mend that, and choose another --out folder.",
    )


def why(best: TrialRow, most: TrialRow) -> str:
    """Why the one is chosen, beside the most accurate one."""
    chosen = f"Trial {best.number}: {best.accuracy:.4f} of the validation comparisons."
    if best.trial == most.trial:
        return f"{chosen} It is the most accurate."
    return (
        f"{chosen} Trial {most.number} has {most.accuracy:.4f}, which is no further away than its standard error of "
        f"{most.standard_error:.4f}, and trains {most.parameters:,} parameters for {best.parameters:,}."
        if most.parameters != best.parameters
        else f"{chosen} Trial {most.number} is as good."
    )


def front(rows: Sequence[TrialRow], objectives: Sequence[str]) -> list[TrialRow]:
    """Those that no other is as good as in every objective and better in one, best accuracy first."""

    def cost(row: TrialRow) -> tuple[float, ...]:
        return tuple(-(row.accuracy or 0.0) if name == "accuracy" else float(getattr(row, name)) for name in objectives)

    able = ranked(rows)
    costs = {row.trial: cost(row) for row in able}
    return [
        row
        for row in able
        if not any(
            costs[other.trial] != costs[row.trial]
            and all(a <= b for a, b in zip(costs[other.trial], costs[row.trial], strict=True))
            for other in able
        )
    ]


def summary(rows: Sequence[TrialRow]) -> dict[str, Any]:
    """Counts and times of a sweep."""
    states = Counter(row.state for row in rows)
    ended = states[FINISHED] + states[STOPPED]
    overhead = [row.seconds - row.training_seconds - row.shared_seconds for row in rows if row.counts and row.failures == 0]
    return {
        "trials": len(rows),
        "states": dict(states),
        "stopped_early_share": states[STOPPED] / ended if ended else 0.0,
        "training_seconds": round(sum(row.training_seconds for row in rows), 1),
        "shared_seconds": round(sum(row.shared_seconds for row in rows), 1),
        "overhead_seconds_a_trial": round(sum(overhead) / len(overhead), 2) if overhead else 0.0,
    }
