"""Work that is done one piece at a time, in threads, and how to tell from outside whether it goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

ResultT = TypeVar("ResultT")

_PATIENCE = 300.0
"""Seconds that a piece of work may take."""


class Turn:
    """Pieces of work wait here for each other, first come, first served. It belongs to one event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._began: float | None = None

    @property
    def taken(self) -> bool:
        """Whether somebody is at work."""
        return self._lock.locked()

    async def run(self, work: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Does the work in a thread, once all that came before is done."""
        async with self._lock:
            self._began = time.monotonic()
            try:
                return await asyncio.to_thread(work, *arguments)
            finally:
                self._began = None

    def check(self) -> None:
        """Whether the work goes on, without waiting for it.

        Raises:
            RuntimeError: A piece of it hangs.
        """
        if self._began is not None and time.monotonic() - self._began > _PATIENCE:
            raise RuntimeError(f"a pass takes over {_PATIENCE:.0f} s")
