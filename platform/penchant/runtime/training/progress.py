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

from penchant.runtime.progress import progress_bar

_POLL_SECONDS = 0.3


class ProgressLog:
    """An append-only file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **values: Any) -> None:
        """Appends one record, whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Every whole record so far."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


@contextlib.contextmanager
def show_progress(console: Console, title: str, log: ProgressLog) -> Iterator[None]:
    """Shows a bar while the block runs, fed by records that have `done`, `total` and, optionally, `note`."""
    with progress_bar(console, title) as say:
        stop = threading.Event()

        def update() -> None:
            records = [record for record in log.read() if "done" in record]
            if records:
                last = records[-1]
                say(last["done"], last["total"], last.get("note", ""))

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
