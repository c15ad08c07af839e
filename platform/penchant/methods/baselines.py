"""The two ends between which every method lies: no user at all, and the user's true group."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from penchant.config import Settings
from penchant.methods.method import Choices, HeadMethod, Shapes
from penchant.reward.config import HeadSettings


class UniformSettings(Settings):
    """Plain Bradley-Terry: one reward for everybody (Ouyang et al., arXiv 2203.02155, section 3.5)."""

    name: Literal["uniform"] = "uniform"


class LoRASettings(Settings):
    """Plain Bradley-Terry with LoRA in the base (Hu et al., arXiv 2106.09685): the usual reward model, one for everybody."""

    name: Literal["lora"] = "lora"


class OracleSettings(Settings):
    """The same head, given the user's true group. It shows what is to be had."""

    name: Literal["oracle"] = "oracle"
    attribute: Literal["group"] = "group"
    """Column of the users' table."""


class Uniform(HeadMethod):
    """The shared head alone; a user's vector is empty."""

    needs_choices = False

    def __init__(self, settings: UniformSettings, shapes: Shapes, head: HeadSettings) -> None:
        super().__init__(shapes, head, user_dim=0)

    def training_vectors(self, choices: Choices, rows: Tensor) -> Tensor:
        """See `Method.training_vectors`."""
        return choices.feature_RF.new_zeros(len(rows), 0)

    def new_vectors(self, choices: Choices) -> Tensor:
        """See `Method.new_vectors`."""
        return choices.feature_RF.new_zeros(choices.num_users, 0)


class Oracle(HeadMethod):
    """The two-term head over one-hot groups; a user of a group that training has not seen gets the shared term."""

    needs_choices = False

    def __init__(self, settings: OracleSettings, shapes: Shapes, head: HeadSettings) -> None:
        super().__init__(shapes, head, user_dim=shapes.attributes)

    def training_vectors(self, choices: Choices, rows: Tensor) -> Tensor:
        """See `Method.training_vectors`."""
        return self.new_vectors(choices)[choices.user[rows]]

    def new_vectors(self, choices: Choices) -> Tensor:
        """See `Method.new_vectors`."""
        assert choices.attribute_U is not None
        count = self.shapes.attributes
        rows = torch.cat([torch.eye(count), torch.zeros(1, count)]).to(choices.user.device)
        return rows[choices.attribute_U]  # -1 is the last row
