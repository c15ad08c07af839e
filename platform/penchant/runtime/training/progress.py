"""Progress of long stages, from the workers to the person watching.

Workers append JSON lines to a file in the run's folder; the driver tails it into a progress bar, and into whatever tracks the
run (`tracking.py`). The file is the run's learning curve afterwards. Where workers and driver share no disk, the lines travel
through an actor to the driver, which writes them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.markup import escape

from penchant.artifacts import explain_disk_errors
from penchant.runtime.progress import progress_bar
from penchant.runtime.threads import polling

_POLL_SECONDS = 0.3
_RELAY_SECONDS = 2.0
"""How long a worker waits for the relay at most: without it, training goes on, unseen."""

Record = dict[str, Any]


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

    def read(self) -> list[Record]:
        """Every whole record so far."""
        if not self.path.is_file():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            # One that is being written, or that a full disk has cut short.
            with contextlib.suppress(json.JSONDecodeError):
                records += [json.loads(line)] if line.endswith("\n") else []
        return records


@ray.remote(num_cpus=0, max_restarts=-1)
class _Relay:
    """Holds records between a worker that wrote them and the driver that takes them."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def put(self, record: Record) -> None:
        self.records.append(record)

    def take(self) -> list[Record]:
        taken, self.records = self.records, []
        return taken


class RelayedLog(ProgressLog):
    """A log whose file only the driver sees. Made by the driver, on a Ray cluster; its copies on the workers write through it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._relay = _Relay.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]

    def write(self, **values: Any) -> None:
        """Sends one record to the driver."""
        ray.wait([self._relay.put.remote(values)], timeout=_RELAY_SECONDS)

    def read(self) -> list[Record]:
        """Every record so far, of which new ones are written to the file. The driver's alone."""
        with contextlib.suppress(ray.exceptions.RayError):
            for record in ray.get(self._relay.take.remote(), timeout=_RELAY_SECONDS):
                super().write(**record)
        return super().read()


def open_log(log: str | ProgressLog) -> ProgressLog:
    """A worker's log, from what it was told: a file's path where that is shared, else the log itself."""
    return ProgressLog(Path(log)) if isinstance(log, str) else log


@contextlib.contextmanager
def show_progress(
    console: Console, title: str, log: ProgressLog, on_record: Callable[[Record], None] = lambda record: None
) -> Iterator[None]:
    """Shows a bar while the block runs, fed by records that have `done`, `total` and, optionally, `note`.

    A record that has `warning` is said above the bar, once.

    Args:
        on_record: Called with every record that is new, in order.
    """
    known = len(log.read())
    with progress_bar(console, title) as say:

        def update() -> None:
            nonlocal known
            records = log.read()
            for record in records[known:]:
                if "warning" in record:
                    console.print(f"[yellow]{title}: {escape(record['warning'])}[/]")
                on_record(record)
            known = len(records)
            shown = [record for record in records if "done" in record]
            if shown:
                last = shown[-1]
                say(last["done"], last["total"], last.get("note", ""))

        with polling(update, seconds=_POLL_SECONDS):
            yield
