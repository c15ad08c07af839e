"""Progress of long stages, from the workers to the person watching.

Workers append JSON lines to a file in the run's folder; the driver tails it into a progress bar. The file is the run's
learning curve afterwards, and needs nothing but the storage that workers and driver share anyway.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from penchant.artifacts import explain_disk_errors

_POLL_SECONDS = 0.3


class ProgressLog:
    """An append-only file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **values: Any) -> None:
        """Appends one record, whole.

        Raises:
            OutputError: The disk is full, or it may not be written.
        """
        with explain_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Every whole record so far."""
        if not self.path.is_file():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            # One that is being written, or that a full disk has cut short.
            with contextlib.suppress(json.JSONDecodeError):
                records += [json.loads(line)] if line.endswith("\n") else []
        return records


@contextlib.contextmanager
def show_progress(console: Console, title: str, log: ProgressLog) -> Iterator[None]:
    """Shows a bar while the block runs, fed by records that have `done`, `total` and, optionally, `note`.

    A record that has `warning` is said above the bar, once.
    """
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None, note="")
        stop, shown = threading.Event(), len(log.read())

        def update() -> None:
            nonlocal shown
            found = log.read()
            for record in found[shown:]:
                if "warning" in record:
                    progress.console.print(f"[yellow]{title}: {escape(record['warning'])}[/]")
            shown = len(found)
            records = [record for record in found if "done" in record]
            if records:
                last = records[-1]
                progress.update(task, completed=last["done"], total=last["total"], note=last.get("note", ""))

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
