"""Whose each row of a call is, and how that reaches the layers.

It belongs to a call, never to a module: it travels in a context variable, which each thread has for itself, and what is
recomputed in the backward pass sees what it first ran with.

Shapes: B rows, T tokens, W width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from penchant.errors import TrainingError

_MIX = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""Odd constants of splitmix64 (Steele et al., 2014), as signed integers."""


@dataclass(frozen=True)
class Rows:
    """The rows of one call."""

    slot: Tensor
    """int64 (B,): the slot of each row's adapter."""
    dropout: float = 0.0
    """Share of what LoRA reads that is dropped."""
    key: Tensor | None = None
    """int64 (B,), with dropout: what is dropped of a row depends on its key, the layer and the position, and on nothing else."""

    def repeat(self, copies: int) -> Rows:
        """Each row `copies` times, together."""
        return Rows(self.slot.repeat_interleave(copies))

    def kept(self, layer: int, like_BTW: Tensor) -> Tensor:
        """1 / (1 - dropout) for what a layer keeps, else 0: (B, T, W)."""
        assert self.key is not None, "dropout needs keys"
        token, feature = (torch.arange(count, device=self.key.device) for count in like_BTW.shape[1:])
        # Three rounds: rows and layers, then tokens, then features, so that no sum of them meets another's.
        mixed = _mixed(_mixed(_mixed(self.key + layer)[:, None] + token)[:, :, None] + feature)
        uniform = (mixed & ((1 << 53) - 1)).to(torch.float64) / (1 << 53)
        return (uniform >= self.dropout).to(like_BTW.dtype) / (1 - self.dropout)


def _mixed(number: Tensor) -> Tensor:
    """splitmix64's finaliser: every bit of the result depends on every bit of the number."""
    number = number * _MIX[0]
    for shift, factor in ((30, _MIX[1]), (27, _MIX[2])):
        number = (number ^ ((number >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return number ^ ((number >> 31) & ((1 << 33) - 1))


_rows: ContextVar[Rows | None] = ContextVar("penchant_adapter_rows", default=None)


@contextlib.contextmanager
def rows_scope(rows: Rows | None) -> Iterator[None]:
    """Runs the block with these rows."""
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


def current_rows() -> Rows:
    """The rows of the call that runs in this thread.

    Raises:
        TrainingError: The layers were called outside a call that says whose the rows are.
    """
    rows = _rows.get()
    if rows is None:
        raise TrainingError("Grouped adapters were called without rows.", fix="Call the GroupedModel with a slot for each row.")
    return rows


def recomputation_contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """`context_fn` of `torch.utils.checkpoint`: the backward pass may run in a thread where no call is open."""
    return contextlib.nullcontext(), rows_scope(_rows.get())
