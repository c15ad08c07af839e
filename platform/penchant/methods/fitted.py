"""Methods with a free row for each user: learnt in training, and for a new user fitted with all that is shared held fixed."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from penchant.config import Settings
from penchant.methods.method import Choices, Method, Shapes
from penchant.reward.config import HeadSettings


class FittedSettings(Settings):
    """How users' rows are learnt."""

    user_learning_rate: float = Field(1e-2, gt=0)
    """AdamW's rate for the rows, which are seldom in a batch: above that of what is shared, as in PAL's published settings."""
    onboarding_steps: int = Field(100, ge=1)
    """Steps of fitting a new user's row, each over all of their comparisons."""
    onboarding_learning_rate: float = Field(5e-2, gt=0)
    """Adam's learning rate for that."""


class FittedMethod(Method):
    """A method whose users are rows. A row of zeros, where every user starts, is the average user.

    Args:
        settings: Of the rows.
        shapes: What it is built for.
        head: Settings of the shared head, for a method that has one.
        row_dim: Width of a row.
    """

    def __init__(self, settings: FittedSettings, shapes: Shapes, head: HeadSettings, *, row_dim: int) -> None:
        super().__init__(shapes, head)
        self.fitting = settings
        self.user_rows = nn.Parameter(torch.zeros(shapes.users, row_dim))

    def vectors(self, row_ND: Tensor) -> Tensor:
        """What a row means: the user's vector."""
        raise NotImplementedError

    def user_parameters(self) -> dict[str, float]:
        """See `Method.user_parameters`."""
        return {"user_rows": self.fitting.user_learning_rate}

    def training_vectors(self, choices: Choices, rows: Tensor) -> Tensor:
        """See `Method.training_vectors`."""
        return self.vectors(self.user_rows[choices.user[rows]])

    def seen_vectors(self, choices: Choices) -> Tensor:
        """See `Method.seen_vectors`."""
        return self.vectors(self.user_rows).detach()

    def new_vectors(self, choices: Choices) -> Tensor:
        """See `Method.new_vectors`: full-batch Adam from the average user on, the Bradley-Terry loss, a mean for each user.

        Adam goes by each number alone, so that users who are fitted together do not touch each other.
        """
        training = self.training
        self.eval()
        with torch.no_grad():
            texts, at = torch.unique(torch.cat([choices.chosen, choices.rejected]), return_inverse=True)
            chosen_CH, rejected_CH = self.hidden(choices.feature_RF[texts])[at].chunk(2)
        weight_C = (1 / torch.bincount(choices.user, minlength=choices.num_users).clamp(min=1))[choices.user]
        row_UD = torch.zeros(choices.num_users, self.user_rows.shape[1], device=choices.user.device, requires_grad=True)
        optimizer = torch.optim.Adam([row_UD], lr=self.fitting.onboarding_learning_rate)
        for _ in range(self.fitting.onboarding_steps if len(choices) else 0):
            user_CD = self.vectors(row_UD)[choices.user]
            margin_C = self.score(chosen_CH, user_CD) - self.score(rejected_CH, user_CD)
            loss = -(weight_C * functional.logsigmoid(margin_C)).sum()
            (row_UD.grad,) = torch.autograd.grad(loss, [row_UD])
            optimizer.step()
        self.train(training)
        with torch.no_grad():
            return self.vectors(row_UD)
