"""Processes that are measured in turn: a block of one, a block of the next, and so on, so that all meet the same machine."""

import time
from pathlib import Path


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
        """Returns when it is this one's turn."""
        number = self.round * len(self.order) + self.place
        while number and not (self.folder / f"turn-{number}").exists():
            time.sleep(0.005)

    def give(self) -> None:
        """Ends this one's turn."""
        if self.leads:
            (self.folder / f"turn-{self.round * len(self.order) + self.place + 1}").touch()
        self.round += 1
