"""Settings of the reward head and of its training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from penchant.config import Settings


class HeadSettings(Settings):
    """What turns features and a user embedding into a score."""

    kind: Literal["two_term", "linear"] = "two_term"
    """`two_term`: a shared term plus the user's own. `linear`: the paper's, which on a frozen base sees no user."""
    hidden: int = Field(64, ge=1)
    """Width of the hidden layer that both terms read."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout on the hidden layer."""


class RewardSettings(Settings):
    """The frozen reward phase."""

    head: HeadSettings = HeadSettings()
    """The head."""
    steps: int = Field(1500, ge=1)
    """Updates."""
    batch_size: int = Field(256, ge=1)
    """Comparisons in a step, over all workers."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW's learning rate."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW's decay."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between looks at the validation comparisons; the best look is kept."""
    seed: int = Field(0, ge=0)
    """Fixes the initial weights and the order of the comparisons."""
