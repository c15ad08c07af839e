"""A sweep's progress, on the console."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping

from rich.console import Console

from penchant.runtime.progress import progress_bar
from penchant.runtime.threads import polling
from penchant.runtime.training.progress import ProgressLog
from penchant.runtime.tuning.results import FAILED, RUNNING, STOPPED, TrialRow, ranked, read_trials
from penchant.runtime.tuning.space import Value

_POLL_SECONDS = 0.5


@contextlib.contextmanager
def show_sweep(console: Console, journal: ProgressLog, trials: int) -> Iterator[None]:
    """Shows while the block runs how many trials are done, running, stopped early and failed, and the best so far."""
    with progress_bar(console, "Trials") as say:

        def update() -> None:
            rows = read_trials(journal.read())
            say(sum(row.state != RUNNING for row in rows), trials, note(rows))

        with polling(update, seconds=_POLL_SECONDS):
            yield


def note(rows: list[TrialRow]) -> str:
    """How the trials stand, in a line."""
    states = Counter(row.state for row in rows)
    parts = [f"{states[state]} {state}" for state in (RUNNING, STOPPED, FAILED) if states[state]]
    for row in ranked(rows)[:1]:
        parts.append(f"best {row.accuracy:.4f} ({in_words(row.values)})")
    return ", ".join(parts)


def in_words(values: Mapping[str, Value]) -> str:
    """Values by the last part of their key: `num_layers 4, num_experts 2`."""
    return ", ".join(f"{short(key)} {_number(value)}" for key, value in values.items())


def short(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def _number(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
