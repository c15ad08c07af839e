"""Processes that are measured in turn: a block of one, a block of the next, and so on, so that all meet the same machine."""

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

PATIENCE = 1800
"""Seconds that one waits for its turn, before it takes the others for dead."""


class Turns:
    """One process's place in the order.

    Args:
        folder: Shared by all.
        order: Their names.
        own: This one's name.
        leads: Whether it passes the turn on. Of several processes under one name, one does.
    """

    def __init__(self, folder: Path, order: list[str], own: str, *, leads: bool = True) -> None:
        self.folder, self.order, self.place, self.leads = folder, order, order.index(own), leads
        self.round = 0

    def wait(self) -> None:
        """Returns when it is this one's turn.

        Raises:
            TimeoutError: It never is.
        """
        number = self.round * len(self.order) + self.place
        deadline = time.monotonic() + PATIENCE
        while number and not (self.folder / f"turn-{number}").exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"Nobody passed turn {number} on; did {self.order[self.place - 1]} fail?")
            time.sleep(0.005)

    def give(self) -> None:
        """Ends this one's turn."""
        if self.leads:
            (self.folder / f"turn-{self.round * len(self.order) + self.place + 1}").touch()
        self.round += 1


def join(processes: Mapping[str, subprocess.Popen]) -> None:
    """Returns when all have ended. One that fails would leave the others waiting for their turn, so these are ended too.

    Raises:
        SystemExit: One failed.
    """
    waiting = dict(processes)
    try:
        while waiting:
            for name, process in list(waiting.items()):
                try:
                    code = process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    continue
                if code:
                    raise SystemExit(f"The process of {name} failed.")
                del waiting[name]
    finally:
        for process in processes.values():
            process.kill()
