"""Vectors kept by key within a bound, and looked up many at once: what of a text does not depend on the user.

Shapes: N look-ups, M keys that are not there, W width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor


class VectorCache:
    """Rows of one width by key; the least recently used are dropped beyond `capacity`. One thread at a time.

    Args:
        capacity: Rows kept at most.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.hits = self.misses = 0
        """Look-ups so far that were answered from memory, and that were not."""
        self._slot: dict[Hashable, int] = {}
        self._key: list[Hashable] = []
        self._used = np.zeros(0, dtype=np.int64)
        self._rows = torch.zeros(0, 0)
        self._clock = 0

    def __len__(self) -> int:
        return len(self._slot)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._slot

    def look_up(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Rows (N, W) of the keys, in order.

        Args:
            compute: Rows (M, W) for these positions in `keys`, which are not there; each absent key is asked for once.
        """
        slot_N = np.fromiter(map(self._slot.get, keys, itertools.repeat(-1)), np.int64, len(keys))
        inside = slot_N >= 0
        self._clock += 1
        self._used[slot_N[inside]] = self._clock
        absent = np.flatnonzero(~inside)
        self.hits, self.misses = self.hits + len(keys) - len(absent), self.misses + len(absent)
        if not len(absent):
            return self._rows[torch.from_numpy(slot_N)]
        first: dict[Hashable, int] = {}
        for position in absent.tolist():
            first.setdefault(keys[position], position)
        number = {key: row for row, key in enumerate(first)}
        computed = compute(list(first.values()))
        result = torch.empty(len(keys), computed.shape[1], dtype=computed.dtype)
        result[torch.from_numpy(absent)] = computed[[number[keys[position]] for position in absent.tolist()]]
        if inside.any():
            result[torch.from_numpy(inside)] = self._rows[torch.from_numpy(slot_N[inside])]
        self._keep(list(first)[: self.capacity], computed)
        return result

    def _keep(self, keys: list[Hashable], rows: Tensor) -> None:
        slots = self._room_for(len(keys), rows)
        for key, slot in zip(keys, slots, strict=True):
            self._slot[key], self._key[slot] = slot, key
        self._rows[slots], self._used[slots] = rows[: len(keys)], self._clock

    def _room_for(self, count: int, rows: Tensor) -> list[int]:
        """Slots for new rows: fresh ones while there are any, then those of the least recently used."""
        size = len(self._key)
        fresh = list(range(size, min(size + count, self.capacity)))
        if fresh:
            self._key += [None] * len(fresh)
            if len(self._key) > len(self._rows):
                length = min(self.capacity, max(1024, 2 * len(self._key)))
                grown = torch.zeros(length, rows.shape[1], dtype=rows.dtype)
                if size:
                    grown[: len(self._rows)] = self._rows
                self._rows, self._used = grown, np.pad(self._used, (0, length - len(self._used)))
        wanted = count - len(fresh)
        if wanted:
            oldest = np.argpartition(self._used[:size], wanted - 1)[:wanted].tolist()
            for slot in oldest:
                del self._slot[self._key[slot]]
            return fresh + oldest
        return fresh
