"""Settings of the graph encoder and of its training."""

from __future__ import annotations

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
    """How the encoder is trained: full-batch steps, the best checkpoint by validation."""

    max_steps: int = Field(180, ge=1)
    """Steps at most; each is one propagation over the whole graph and one update."""
    learning_rate: float = Field(5e-3, gt=0)
    """AdamW's learning rate."""
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's decay: the L2 term of the paper's loss, decoupled."""
    supervision_share: float = Field(0.5, ge=0, lt=1)
    """Share of the comparisons that a step leaves out of message passing and scores; 0 scores what it has just aggregated."""
    edge_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the edges dropped from each step's message passing (the paper's is 0.1)."""
    evaluate_every: int = Field(5, ge=1)
    """Steps between looks at the validation comparisons."""
    patience: int = Field(8, ge=1)
    """Looks without a better validation accuracy before training stops."""


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
