"""Settings of the graph encoder and of its training."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from penchant.config import Settings


class EncoderSettings(Settings):
    """What the encoder is: layers, widths and what users and responses start from."""

    layer: Literal["copl", "lightgcn", "sage", "gat", "mixture"] = "copl"
    """Kind of message-passing layer. `mixture` passes no messages: a user is the probability of each of `dim` kinds of users."""
    num_layers: int = Field(4, ge=0, le=16)
    """Rounds of messages."""
    dim: int = Field(64, ge=2, le=4096)
    """Width of user and response embeddings."""
    response_init: Literal["id", "text", "id+text"] = "text"
    """What a response starts from: a free row, a projection of its frozen features, or their sum."""
    user_init: Literal["id", "shared"] = "shared"
    """What a user starts from: a free row, or one vector that all users share (needed to embed an unseen user)."""
    neighbour_projection: bool = False
    """`copl` only: multiply a neighbour's embedding by a weight first, as the paper writes it and its code does not."""

    @property
    def inductive(self) -> bool:
        """Whether a user or response that was not in training can be embedded by a forward pass."""
        return self.user_init == "shared" and self.response_init != "id"

    @property
    def uses_text(self) -> bool:
        """Whether responses start from their text's features."""
        return self.response_init != "id"

    @model_validator(mode="after")
    def _check(self) -> EncoderSettings:
        if self.neighbour_projection and self.layer != "copl":
            raise ValueError("neighbour_projection belongs to layer: copl")
        if self.layer == "mixture" and self.num_layers != 1:
            raise ValueError("layer: mixture is one layer: num_layers: 1")
        if self.user_init == "shared" and self.num_layers == 0:
            raise ValueError("user_init: shared needs at least one layer, or all users are the same")
        return self


class OptimizationSettings(Settings):
    """How the encoder is trained: steps over the whole graph, the best checkpoint by validation.

    Settings that came later are left out of what is written where they are the default: it is the same as before them.
    """

    max_steps: int = Field(180, ge=1)
    """Steps at most; each is one propagation over the whole graph and one update."""
    batch_size: int | None = Field(None, ge=1, exclude_if=lambda size: size is None)
    """Comparisons that a step scores, over all workers, about so many: an epoch is cut at random. By default it scores all."""
    num_epochs: int | None = Field(None, ge=1, exclude_if=lambda epochs: epochs is None)
    """Passes over the comparisons at most, with a look at the validation comparisons after each, in place of `evaluate_every`."""
    learning_rate: float = Field(5e-3, gt=0)
    """AdamW's learning rate, at its highest."""
    lr_scheduler_type: Literal["constant", "cosine"] = Field("constant", exclude_if=lambda kind: bool(kind == "constant"))
    """`cosine`: it falls to 0 over the steps, as half a cosine."""
    warmup_ratio: float = Field(0.0, ge=0, lt=1, exclude_if=lambda ratio: bool(ratio == 0))
    """Share of the steps over which it rises first, from 0."""
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's decay: the L2 term of the paper's loss, decoupled."""
    embedding_l2: float = Field(0.0, ge=0, exclude_if=lambda weight: bool(weight == 0))
    """Weight of the scored comparisons' squared embeddings in the loss: a sum beside the mean, as the authors have it."""
    supervision_share: float = Field(0.5, ge=0, lt=1)
    """Share of the comparisons that a step leaves out of message passing and scores; 0 scores what it has just aggregated."""
    edge_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the edges dropped from each step's message passing (the paper's is 0.1)."""
    evaluate_every: int = Field(5, ge=1)
    """Steps between looks at the validation comparisons."""
    patience: int = Field(8, ge=1)
    """Looks without a better validation accuracy before training stops."""

    @model_validator(mode="after")
    def _check(self) -> OptimizationSettings:
        if self.batch_size is not None and self.supervision_share > 0:
            raise ValueError("batch_size goes with supervision_share: 0; a step that leaves comparisons out scores those")
        return self

    def batches(self, comparisons: int) -> int:
        """Steps in a pass over so many comparisons."""
        return 1 if self.batch_size is None else max(1, math.ceil(comparisons / self.batch_size))

    def steps(self, comparisons: int) -> int:
        """Steps at most, for so many comparisons."""
        return self.max_steps if self.num_epochs is None else min(self.max_steps, self.num_epochs * self.batches(comparisons))

    def steps_between_looks(self, comparisons: int) -> int:
        """Steps between looks at the validation comparisons."""
        return self.evaluate_every if self.num_epochs is None else self.batches(comparisons)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step (from 0 on) among so many."""
        warmup = int(self.warmup_ratio * steps)
        if step < warmup:
            return self.learning_rate * step / warmup
        if self.lr_scheduler_type == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class CandidateSettings(Settings):
    """One encoder with its training; the graph stage trains every candidate and keeps the best by validation."""

    encoder: EncoderSettings = EncoderSettings()
    """The encoder."""
    optimization: OptimizationSettings = OptimizationSettings()
    """Its training."""


def default_candidates() -> dict[str, CandidateSettings]:
    """Text with left-out pairs, with and without a free row for each response: the winner depends on the density."""
    return {
        "text": CandidateSettings(encoder=EncoderSettings(response_init="text")),
        "id+text": CandidateSettings(encoder=EncoderSettings(response_init="id+text")),
    }


class GraphSettings(Settings):
    """The graph stage."""

    candidates: dict[str, CandidateSettings] = Field(default_factory=default_candidates, min_length=1)
    """Encoders to train, by name; the one with the best validation accuracy is kept."""
    folds: int = Field(4, ge=0, le=64)
    """The comparisons are dealt to so many folds; beside the embedding from all of them, a user gets one without each fold,
    so that the reward stage can learn from comparisons which the embedding does not already hold. 0: none (published)."""
    seed: int = Field(0, ge=0)
    """Fixes initial rows, left-out pairs and dropped edges."""

    @model_validator(mode="after")
    def _check_folds(self) -> GraphSettings:
        if self.folds == 1:
            raise ValueError("one fold would hide all comparisons: 0 for none, or 2 and more")
        return self
