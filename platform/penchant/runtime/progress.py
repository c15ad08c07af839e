"""How far a long piece of work is: a bar on a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

_SECONDS_BETWEEN_LINES = 10.0


class Say(Protocol):
    """Is told how far the work is."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """So many of so many are done."""


@contextlib.contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Say]:
    """Yields what is told how far the work is, and shows it while the block runs.

    Where nobody watches (a job's log, a file), it prints a line every ten seconds, and the last word.
    """
    if not console.is_terminal:
        lines = _Lines(console, title)
        try:
            yield lines.say
        finally:
            lines.flush()
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None, note="")

        def say(done: int, total: int, note: str = "") -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield say


class _Lines:
    def __init__(self, console: Console, title: str) -> None:
        self.console, self.title = console, title
        self._started = self._printed = time.monotonic()
        self._latest = self._shown = ""

    def say(self, done: int, total: int, note: str = "") -> None:
        self._latest = f"{done:,} of {total:,}" + (f", {note}" if note else "")
        if time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self.flush()

    def flush(self) -> None:
        if self._latest == self._shown:
            return
        self._printed, self._shown = time.monotonic(), self._latest
        seconds = self._printed - self._started
        self.console.print(f"{self.title}: {escape(self._latest)} ({seconds:.0f} s)", soft_wrap=True, highlight=False)
