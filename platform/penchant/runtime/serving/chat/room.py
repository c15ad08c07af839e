"""A bound on what is in work at once."""

from __future__ import annotations

import asyncio
from collections import deque


class Room:
    """So many places; who wants several gets them all at once, and who came first goes first.

    Args:
        places: How many there are.
    """

    def __init__(self, places: int) -> None:
        self.free = places
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, count: int) -> None:
        """Returns once `count` places are taken."""
        if count <= self.free and not self._waiting:
            self.free -= count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(count)  # the places were given while the wait was called off
            else:
                self._waiting.remove((count, turn))
                self._let_in()
            raise

    def leave(self, count: int) -> None:
        """Gives places back."""
        self.free += count
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.free:
            count, turn = self._waiting.popleft()
            self.free -= count
            turn.set_result(None)
