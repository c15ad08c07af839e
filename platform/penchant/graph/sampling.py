"""Random choices that do not depend on who makes them: a hash of (seed, step, index) in place of a generator.

With it, N workers drop the same edges, leave out the same comparisons and start from the same rows as one worker.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FOLD, DROPOUT_STREAM = 14, 15  # streams of their own, beside those of training.py


def uniform(index: Tensor, *, seed: int, step: int, stream: int = 0) -> Tensor:
    """Numbers in [0, 1) of the shape of `index` (int64), fixed by (seed, step, stream, index): float64.

    The mixing is splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), in wrapping 64-bit arithmetic.
    """
    state = index ^ _mix_number(seed * 1_000_003 + step * 8_191 + stream * 131 + 7)
    state = _mix(_mix(state) + _signed(0x9E3779B97F4A7C15))
    return ((state >> 11) & ((1 << 53) - 1)).double() / float(1 << 53)


def fold_of(comparison: Tensor, *, folds: int, seed: int) -> Tensor:
    """The fold (0 to folds - 1) that each comparison's number falls into: int64."""
    return (uniform(comparison, seed=seed, step=0, stream=_FOLD) * folds).long()


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix(state: Tensor) -> Tensor:
    # A logical shift: int64's own is arithmetic, so the copied sign bits are masked away.
    state = (state ^ ((state >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ ((state >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return state ^ ((state >> 31) & ((1 << 33) - 1))


def _mix_number(value: int) -> int:
    return int(_mix(torch.tensor(_signed(value), dtype=torch.int64)).item())


def initial_rows(start: int, stop: int, dim: int, *, seed: int, stream: int, dtype: torch.dtype) -> Tensor:
    """Rows `start` to `stop` of an embedding table, uniform in +-sqrt(3 / dim) (unit variance per row): (N, dim)."""
    index = torch.arange(start * dim, stop * dim, dtype=torch.int64)
    bound = (3.0 / dim) ** 0.5
    return ((uniform(index, seed=seed, step=0, stream=stream) * 2 - 1) * bound).to(dtype).reshape(stop - start, dim)
