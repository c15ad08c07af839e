"""One user's course of fitting: what is learnt in each step, at what rate, and when it ends.

It depends on the user's id, the user's examples and the settings: neither on other users nor on the user's place among them.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from penchant.adapters.config import FittingSettings
from penchant.adapters.items import Item
from penchant.adapters.optimization import rate_share


def user_seed(seed: int, user: str) -> int:
    """A number that is the user's own, of 62 bits."""
    digest = hashlib.blake2b(f"{seed}\0{user}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def split_held_out(items: list[Item], settings: FittingSettings) -> tuple[list[Item], list[Item]]:
    """What is learnt and what is held out: the latest items, so that the past is never judged by the future."""
    count = 0 if settings.patience is None else math.floor(settings.held_out * len(items))
    return items[: len(items) - count], items[len(items) - count :]


@dataclass
class Course:
    """The state of one user's fitting."""

    user: str
    slot: int
    items: list[Item]
    """Learnt from, oldest first."""
    held_out: list[Item]
    """Latest items, which the early stop looks at."""
    settings: FittingSettings
    step: int = 0
    """Updates so far."""
    epoch_losses: list[float] = field(default_factory=list)
    """Of this epoch's steps."""
    best: dict[str, Tensor] | None = None
    """The adapter with the least loss on what is held out."""
    best_loss: float = math.inf
    worse: int = 0
    """Epochs since then."""
    order: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Of this epoch."""

    def __post_init__(self) -> None:
        self.seed = user_seed(self.settings.seed, self.user)
        self.steps_an_epoch = math.ceil(len(self.items) / self.settings.batch_size)
        self.steps = self.settings.epochs * self.steps_an_epoch

    @property
    def epoch(self) -> int:
        """Epochs that are behind."""
        return self.step // self.steps_an_epoch

    @property
    def at_epoch_end(self) -> bool:
        """Whether an epoch has just been finished."""
        return self.step > 0 and self.step % self.steps_an_epoch == 0

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        stopped = self.settings.patience is not None and self.worse >= self.settings.patience
        return self.step >= self.steps or stopped

    def batch(self) -> list[Item]:
        """The items of the next step."""
        within = self.step % self.steps_an_epoch
        if within == 0:
            self.order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.items))
            self.epoch_losses.clear()
        start = within * self.settings.batch_size
        return [self.items[number] for number in self.order[start : start + self.settings.batch_size]]

    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.settings.learning_rate * rate_share(self.step, self.steps, self.settings.warm_up)

    def row_keys(self, rows: int) -> list[int]:
        """For dropout: a number for each row of the next step."""
        return [user_seed(self.step, f"{self.seed}/{row}") for row in range(rows)]

    def judge(self, loss: float, adapter: dict[str, Tensor]) -> None:
        """Takes note of the loss on what is held out, at the end of an epoch."""
        if loss < self.best_loss:
            self.best, self.best_loss, self.worse = adapter, loss, 0
        else:
            self.worse += 1
