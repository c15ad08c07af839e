"""Which slot each row of a call uses, and how that reaches the layers.

The slots belong to a call, never to a module: they travel in a context variable, which each thread has for itself, and what is
recomputed in the backward pass sees the slots that it first ran with.

Shapes: B rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from torch import Tensor

from penchant.errors import TrainingError

_slots: ContextVar[Tensor | None] = ContextVar("penchant_adapter_slots", default=None)


@contextlib.contextmanager
def rows_scope(slot_B: Tensor | None) -> Iterator[None]:
    """Runs the block with these slots, int64 (B,), one for each row of the batch."""
    token = _slots.set(slot_B)
    try:
        yield
    finally:
        _slots.reset(token)


def current_slots() -> Tensor:
    """The slots of the call that runs in this thread: int64 (B,).

    Raises:
        TrainingError: The layers were called outside a call that says whose the rows are.
    """
    slot_B = _slots.get()
    if slot_B is None:
        raise TrainingError("Grouped adapters were called without slots.", fix="Call the GroupedModel with a slot for each row.")
    return slot_B


def recomputation_contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """`context_fn` of `torch.utils.checkpoint`: the backward pass may run in a thread where no call is open."""
    return contextlib.nullcontext(), rows_scope(_slots.get())
