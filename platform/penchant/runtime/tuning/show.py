"""A sweep's progress, on the console."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from penchant.runtime.training.progress import ProgressLog
from penchant.runtime.tuning.results import FAILED, RUNNING, STOPPED, TrialRow, ranked, read_trials
from penchant.runtime.tuning.space import Value

_POLL_SECONDS = 0.5


@contextlib.contextmanager
def show_sweep(console: Console, journal: ProgressLog, trials: int) -> Iterator[None]:
    """Shows while the block runs how many trials are done, running, stopped early and failed, and the best so far."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("Trials", total=trials, note="")
        stop = threading.Event()

        def update() -> None:
            rows = read_trials(journal.read())
            progress.update(task, completed=sum(row.state != RUNNING for row in rows), note=note(rows))

        def follow() -> None:
            while not stop.wait(_POLL_SECONDS):
                update()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            update()


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
