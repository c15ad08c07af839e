"""Training of the graph encoder: steps over the whole graph, the same with any number of workers.

Loss (CoPL, eq. 5): `-logsigmoid(e_u . (e_chosen - e_rejected))`, the mean over the supervised comparisons of all workers.
Each step hides a share of the comparisons from message passing and scores those alone, as in link prediction; with a share
of 0 it scores the comparisons that it has just aggregated, which is the published setting: all, or a batch of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from penchant.errors import TrainingError
from penchant.graph.collectives import Collective
from penchant.graph.config import CandidateSettings
from penchant.graph.encoder import GraphEncoder
from penchant.graph.preference_graph import Messages, PreferenceShard, messages
from penchant.graph.sampling import fold_of, uniform
from penchant.graph.sparse import edge_dots
from penchant.tensors import load_optimizer_tensors, optimizer_tensors, with_prefix, without_prefix

_SUPERVISED, _DROP_POSITIVE, _DROP_NEGATIVE, _BATCH = 11, 12, 13, 16  # streams of the hash


@dataclass(frozen=True)
class GraphProgress:
    """One look at the validation comparisons."""

    step: int
    loss: float
    """Of the last training step."""
    valid_accuracy: float
    best: bool
    """Whether this is the best so far."""


@dataclass(frozen=True)
class GraphEmbeddings:
    """What a trained encoder leaves behind, for this worker's users."""

    user: Tensor
    """(U, D), L2-normalised."""
    user_folds: Tensor
    """(folds, U, D), L2-normalised: without the messages of the comparisons of each fold."""
    response_layers: Tensor
    """(num_layers + 1, R, D): before the first layer and after each; the last is the response embedding."""
    response_degree: Tensor
    """(2, R): edges a response has, chosen and rejected, over all workers."""


def count_comparisons(shard: PreferenceShard, collective: Collective, device: torch.device | str) -> int:
    """Comparisons of all workers, who sum them on this device."""
    return int(collective.sum(torch.tensor(float(len(shard)), dtype=torch.float64, device=device)))


class GraphTrainer:
    """One worker's part of the training of one encoder.

    Args:
        settings: The encoder and its optimisation.
        train: This worker's training comparisons.
        valid: This worker's validation comparisons (same users).
        features: Features of the responses (R, F), not standardised, where the encoder uses text.
        collective: Sums over workers.
    """

    def __init__(
        self,
        settings: CandidateSettings,
        train: PreferenceShard,
        valid: PreferenceShard,
        *,
        features: Tensor | None,
        collective: Collective,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings = settings.optimization
        self.train, self.valid = train.to(device), valid.to(device)
        self.collective, self.seed, self.dtype = collective, seed, dtype
        self.encoder = GraphEncoder(
            settings.encoder,
            num_users=train.num_users,
            num_responses=train.num_responses,
            feature_dim=0 if features is None else features.shape[1],
            first_user=train.first_user,
            seed=seed,
            dtype=dtype,
        ).to(device)
        self.features: Tensor | None = None
        if settings.encoder.uses_text:
            if features is None:
                raise TrainingError("The encoder uses text, and there are no features.", fix="Set response_init: id.")
            self.encoder.standardise.fit(features)
            self.features = self.encoder.standardise(features.to(device))
        self.optimizer = torch.optim.AdamW(
            self.encoder.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        comparisons = count_comparisons(self.train, collective, device)
        self.batches, self.steps = self.settings.batches(comparisons), self.settings.steps(comparisons)
        """Steps in a pass over the comparisons, and in all."""
        self.look_every = self.settings.steps_between_looks(comparisons)
        self.step_number = 0
        self.best_accuracy, self.best_step = -1.0, 0
        self.best_state = self._snapshot()

    def step(self) -> float:
        """One update from the comparisons of all workers, all or a batch; returns the loss.

        Raises:
            TrainingError: The loss is not finite. The last checkpoint is untouched.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step_number, self.steps)
        graph, supervised = self._choose_supervised()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(graph, supervised)
        loss.backward()
        self.collective.sum_gradients(self.encoder.replicated_parameters())
        total = float(self.collective.sum(loss.detach()))
        if not math.isfinite(total):
            raise TrainingError(
                f"The graph stage's loss is {total} at step {self.step_number}.",
                fix="Lower graph.candidates.*.optimization.learning_rate; the last checkpoint is intact.",
            )
        self.optimizer.step()
        self.step_number += 1
        return total

    def _choose_supervised(self) -> tuple[Messages, Tensor]:
        comparison, step = self.train.comparison, self.step_number
        share, dropout = self.settings.supervision_share, self.settings.edge_dropout
        if share > 0:
            supervised = uniform(comparison, seed=self.seed, step=step, stream=_SUPERVISED) < share
            visible = ~supervised
        else:
            visible = torch.ones_like(comparison, dtype=torch.bool)
            epoch, batch = divmod(step, self.batches)
            drawn = uniform(comparison, seed=self.seed, step=epoch, stream=_BATCH) if self.batches > 1 else None
            supervised = visible if drawn is None else (drawn * self.batches).long() == batch
        kept = []
        for stream in (_DROP_POSITIVE, _DROP_NEGATIVE):
            dropped = uniform(comparison, seed=self.seed, step=step, stream=stream) < dropout if dropout else None
            kept.append((visible if dropped is None else visible & ~dropped).to(self.dtype))
        random = (self.seed, step)
        graph = messages(self.train, self.collective, positive=kept[0], negative=kept[1], step=random, dtype=self.dtype)
        return graph, supervised.to(self.dtype)

    def _loss(self, graph: Messages, supervised_C: Tensor) -> Tensor:
        """This worker's part of the loss: its sum over the *global* count, so that the workers' parts add up."""
        user_UD, response_RD = self.encoder(graph, self.features)
        margin_C = edge_dots(self.train.positive, user_UD, response_RD) - edge_dots(self.train.negative, user_UD, response_RD)
        count = self.collective.sum(supervised_C.sum()).clamp(min=1)
        loss = -(functional.logsigmoid(margin_C) * supervised_C).sum() / count
        if self.settings.embedding_l2:
            size_U, size_R = user_UD.square().sum(1), response_RD.square().sum(1)
            positive, negative = self.train.positive, self.train.negative
            size_C = size_U[positive.user] + size_R[positive.response] + size_R[negative.response]
            loss = loss + self.settings.embedding_l2 * (size_C * supervised_C).sum()
        return loss

    @torch.no_grad()
    def validate(self) -> float:
        """Share of all workers' validation comparisons that the embeddings rank right, with every training edge visible."""
        user_UD, response_RD = self.encoder(messages(self.train, self.collective, dtype=self.dtype), self.features)
        margin_C = edge_dots(self.valid.positive, user_UD, response_RD) - edge_dots(self.valid.negative, user_UD, response_RD)
        right = (margin_C > 0).double().sum() + 0.5 * (margin_C == 0).double().sum()
        total = self.collective.sum(torch.stack([right, torch.tensor(float(len(margin_C)), device=right.device).double()]))
        return float(total[0] / total[1].clamp(min=1))

    def run(self) -> Iterator[GraphProgress]:
        """Trains to the end, yielding at each look at the validation comparisons; resumes from a loaded state.

        Without validation comparisons the last step is kept.
        """
        can_choose = bool(self.collective.sum(self.valid.positive.user.new_tensor(float(len(self.valid.comparison)))) > 0)
        while self.step_number < self.steps and not self.exhausted:
            loss = self.step()
            if self.step_number % self.look_every and self.step_number < self.steps:
                continue
            accuracy = self.validate()
            improved = accuracy > self.best_accuracy or not can_choose
            if improved:
                self.best_accuracy, self.best_step = accuracy, self.step_number
                self.best_state = self._snapshot()
            yield GraphProgress(self.step_number, loss, accuracy, improved)

    @property
    def exhausted(self) -> bool:
        """Whether `patience` looks have passed without a better one."""
        return self.step_number - self.best_step >= self.settings.patience * self.look_every

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.encoder.state_dict().items()}

    @torch.no_grad()
    def embeddings(self, folds: int = 0) -> GraphEmbeddings:
        """The best checkpoint's embeddings, with every training edge visible, and with each fold's hidden."""
        current = self._snapshot()
        self.encoder.load_state_dict(self.best_state)
        graph = messages(self.train, self.collective, dtype=self.dtype)
        pairs = self.encoder.all_layers(graph, self.features)
        fold_C = fold_of(self.train.comparison, folds=folds, seed=self.seed)
        without = [self._user_embedding(visible=fold_C != fold) for fold in range(folds)]
        self.encoder.load_state_dict(current)
        user_UD = functional.normalize(pairs[-1][0], dim=1)
        return GraphEmbeddings(
            user=user_UD,
            user_folds=torch.stack(without) if without else user_UD.new_zeros(0, *user_UD.shape),
            response_layers=torch.stack([response for _, response in pairs]),
            response_degree=torch.stack([graph.positive.response_degree, graph.negative.response_degree]),
        )

    def _user_embedding(self, *, visible: Tensor) -> Tensor:
        weights = visible.to(self.dtype)
        graph = messages(self.train, self.collective, positive=weights, negative=weights, dtype=self.dtype)
        return functional.normalize(self.encoder(graph, self.features)[0], dim=1)

    def state(self) -> dict[str, Tensor]:
        """Everything that resuming needs, as tensors by name."""
        progress = torch.tensor([self.step_number, self.best_step, self.best_accuracy], dtype=torch.float64)
        return (
            with_prefix("encoder", self._snapshot())
            | with_prefix("best", self.best_state)
            | with_prefix("optimizer", optimizer_tensors(self._names(), self.optimizer))
            | {"progress": progress}
        )

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes up where `state` was called."""
        self.encoder.load_state_dict(without_prefix("encoder", tensors))
        self.best_state = without_prefix("best", tensors)
        load_optimizer_tensors(self._names(), self.optimizer, without_prefix("optimizer", tensors))
        step, best_step, self.best_accuracy = tensors["progress"].tolist()
        self.step_number, self.best_step = int(step), int(best_step)

    def _names(self) -> list[str]:
        return [name for name, _ in self.encoder.named_parameters()]
