"""Training of reward heads on frozen features: one loss, several models side by side on the same batches.

Loss: Bradley-Terry, `-logsigmoid(score(chosen) - score(rejected))` (CoPL, eq. 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from penchant.errors import TrainingError
from penchant.reward.config import RewardSettings
from penchant.reward.heads import RewardHead, make_head
from penchant.tensors import load_optimizer_tensors, optimizer_tensors, with_prefix, without_prefix


@dataclass(frozen=True)
class UserTable:
    """What a model knows of the users."""

    embedding: Tensor
    """(N, D)"""
    row: np.ndarray
    """int64 (C,): the row that each comparison's user has there."""
    count: int | None = None
    """How many of the first rows are users' whole embeddings; None for all. Behind them may stand others, which leave some of
    a user's comparisons out."""


@dataclass(frozen=True)
class RewardData:
    """Integer-coded comparisons (C,), features of the responses (R, F), and what each model knows of the users."""

    feature_RF: Tensor
    chosen: np.ndarray
    rejected: np.ndarray
    valid: np.ndarray
    """bool (C,): validation comparisons; the others are trained on."""
    users: dict[str, UserTable | None]
    """Model name -> its users, or None for a model without users (uniform)."""


@dataclass(frozen=True)
class RewardProgress:
    """One look at the validation comparisons, by model."""

    step: int
    loss: dict[str, float]
    """Mean over the steps since the last look, on this worker's part of the batches."""
    valid_accuracy: dict[str, float]


class RewardTrainer:
    """One worker's part of the training of the heads.

    Args:
        settings: Head and optimisation.
        data: All comparisons; each worker takes its slice of every batch.
        wrap: Makes a head data-parallel (Ray Train's `prepare_model`); identity on one worker.
    """

    def __init__(
        self,
        settings: RewardSettings,
        data: RewardData,
        *,
        rank: int = 0,
        world_size: int = 1,
        wrap: Callable[[RewardHead], torch.nn.Module] = lambda head: head,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings, self.rank, self.world_size, self.device = settings, rank, world_size, device
        self.feature_RF = data.feature_RF.to(device)
        self.comparisons = torch.from_numpy(np.stack([data.chosen, data.rejected])).long().to(device)
        valid = torch.from_numpy(data.valid).to(device)
        self.train_rows, self.valid_rows = (~valid).nonzero()[:, 0], valid.nonzero()[:, 0]
        if len(self.train_rows) == 0:
            raise TrainingError("There is no training comparison of a seen user.", fix="Check split and cohort.")
        self.users = {
            name: None if users is None else (users.embedding.to(device), torch.tensor(users.row, device=device))
            for name, users in data.users.items()
        }
        seen_text = torch.unique(self.comparisons[:, self.train_rows])
        self.heads: dict[str, RewardHead] = {}
        for name, users in data.users.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                head = self._make_head(name, users)
            head.standardise.fit(self._features(name)[seen_text].cpu())
            self.heads[name] = head.to(device)
        self.wrapped = {name: wrap(head) for name, head in self.heads.items()}
        self.optimizers = {name: self._make_optimizer(head) for name, head in self.heads.items()}
        self.step_number = 0
        self.best = dict.fromkeys(self.heads, -1.0)
        self.best_state = {name: self._snapshot(name) for name in self.heads}

    def _make_head(self, name: str, users: UserTable | None) -> RewardHead:
        user_dim = 0 if users is None else users.embedding.shape[1]
        return make_head(self.settings.head, feature_dim=self.feature_RF.shape[1], user_dim=user_dim)

    def _make_optimizer(self, head: RewardHead) -> torch.optim.Optimizer:
        """Its parameters are in the order of `head.named_parameters()`, or a checkpoint could not name them."""
        return torch.optim.AdamW(head.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay)

    def _features(self, name: str) -> Tensor:
        """What a model reads of the responses: (R, F)."""
        return self.feature_RF

    def _batch(self) -> Tensor:
        """This worker's rows of the step's batch. Fixed by (seed, step), whatever the number of workers."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step_number)
        drawn = torch.randint(len(self.train_rows), (self.settings.batch_size,), generator=generator)
        return self.train_rows[drawn[self.rank :: self.world_size].to(self.device)]

    def _seed(self, seed: int) -> None:
        """`torch.manual_seed` for this device alone: that writes a stack trace for each kind that is not there, at every step."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def _margin(self, name: str, model: torch.nn.Module, rows: Tensor) -> Tensor:
        features = self._features(name).index_select(0, self.comparisons[:, rows].flatten())
        known = self.users[name]
        users = None
        if known is not None:
            embedding, row = known
            users = embedding[row[rows]].repeat(2, 1)
        score = model(features, users)
        return score[: len(rows)] - score[len(rows) :]

    def _loss(self, name: str, model: torch.nn.Module, rows: Tensor) -> Tensor:
        """A model's loss, summed over these training comparisons."""
        return -functional.logsigmoid(self._margin(name, model, rows)).sum()

    def step(self) -> dict[str, float]:
        """One update of every model on the same batch; returns the losses of this worker's part.

        Raises:
            TrainingError: A loss is not finite; the message says which step's batch.
        """
        rows = self._batch()
        losses = {}
        for name, model in self.wrapped.items():
            model.train()
            # Dropout too is fixed by (seed, step, rank), so that a resumed run repeats an uninterrupted one.
            self._seed((self.settings.seed * 1_000_003 + self.step_number) * 4_096 + self.rank)
            # Data-parallel training averages gradients over workers: scale so that the mean is over the whole batch.
            loss = self._loss(name, model, rows) * self.world_size / self.settings.batch_size
            self.optimizers[name].zero_grad(set_to_none=True)
            loss.backward()
            losses[name] = loss.item()
            if not math.isfinite(losses[name]):
                raise TrainingError(
                    f"The loss of {name!r} is {losses[name]} at step {self.step_number}.",
                    where=f"comparisons {rows[:8].tolist()}...",
                    fix="Lower reward.learning_rate; the last checkpoint is intact.",
                )
            self.optimizers[name].step()
        self.step_number += 1
        return losses

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Share of the validation comparisons that each model ranks right; a tie counts one half."""
        accuracy = {}
        for name, head in self.heads.items():
            head.eval()
            margin = torch.cat([self._margin(name, head, rows) for rows in self.valid_rows.split(16_384)])
            accuracy[name] = float(((margin > 0).double() + 0.5 * (margin == 0).double()).mean())
        return accuracy

    def run(self) -> Iterator[RewardProgress]:
        """Trains to the end, yielding at each look at the validation comparisons; resumes from a loaded state."""
        sums, count = dict.fromkeys(self.heads, 0.0), 0
        while self.step_number < self.settings.steps:
            losses = self.step()
            sums, count = {name: sums[name] + loss for name, loss in losses.items()}, count + 1
            if self.step_number % self.settings.evaluate_every and self.step_number < self.settings.steps:
                continue
            # Without validation comparisons the last step is kept.
            accuracy = self.validate() if len(self.valid_rows) else dict.fromkeys(self.heads, 0.0)
            for name in self.heads:
                if accuracy[name] > self.best[name] or not len(self.valid_rows):
                    self.best[name] = accuracy[name]
                    self.best_state[name] = self._snapshot(name)
            yield RewardProgress(self.step_number, {name: total / count for name, total in sums.items()}, accuracy)
            sums, count = dict.fromkeys(self.heads, 0.0), 0

    def _snapshot(self, name: str) -> dict[str, Tensor]:
        return {key: tensor.detach().clone() for key, tensor in self.heads[name].state_dict().items()}

    def state(self) -> dict[str, Tensor]:
        """Everything that resuming needs, as tensors by name."""
        tensors = {"progress": torch.tensor([self.step_number, *self.best.values()], dtype=torch.float64)}
        for name, head in self.heads.items():
            tensors |= with_prefix(f"{name}.head", self._snapshot(name))
            tensors |= with_prefix(f"{name}.best", self.best_state[name])
            tensors |= with_prefix(f"{name}.optimizer", optimizer_tensors(_names(head), self.optimizers[name]))
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes up where `state` was called."""
        step, *best = tensors["progress"].tolist()
        self.step_number, self.best = int(step), dict(zip(self.heads, best, strict=True))
        for name, head in self.heads.items():
            head.load_state_dict(without_prefix(f"{name}.head", tensors))
            self.best_state[name] = without_prefix(f"{name}.best", tensors)
            load_optimizer_tensors(_names(head), self.optimizers[name], without_prefix(f"{name}.optimizer", tensors))


def _names(head: RewardHead) -> list[str]:
    return [name for name, _ in head.named_parameters()]
