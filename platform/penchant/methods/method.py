"""What every method is.

Shapes: C comparisons, N of them, R responses, F features, U users, D a user's vector, H what is read of a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from penchant.reward.config import HeadSettings
from penchant.reward.heads import RewardHead, make_head


@dataclass(frozen=True)
class Choices:
    """Comparisons of users who are numbered from 0, and all that a method may know of these users."""

    feature_RF: Tensor
    """Of every response; for a method that `reads_prompts`, the features of its prompt stand behind."""
    user: Tensor
    """int64 (C,)"""
    chosen: Tensor
    """int64 (C,): rows of `feature_RF`."""
    rejected: Tensor
    """int64 (C,): rows of `feature_RF`."""
    num_users: int
    attribute_U: Tensor | None = None
    """int64: the user's value of the method's attribute, -1 where it is not known or was never seen in training."""

    def __len__(self) -> int:
        return len(self.user)

    def by_user(self) -> tuple[Tensor, Tensor]:
        """Rows (C,) in the order of their users, and where in it each user's begin: (U + 1,)."""
        count = torch.bincount(self.user, minlength=self.num_users)
        start = torch.cat([count.new_zeros(1), count.cumsum(0)])
        return self.user.argsort(stable=True), start

    def to(self, device: torch.device | str) -> Choices:
        """The same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return Choices(**moved)


@dataclass(frozen=True)
class Shapes:
    """What a method is built for."""

    features: int
    """F: of a response."""
    prompts: int
    """Features of its prompt that stand behind, for a method that `reads_prompts`; else 0."""
    users: int
    """U: the users of training."""
    attributes: int
    """Values of the method's attribute."""


class Method(RewardHead):
    """A personalised reward model over frozen features. See the package for what a new one has to say.

    Args:
        shapes: What it is built for.
        head: Settings of the shared head, for a method that has one.
    """

    reads_prompts: ClassVar[bool] = False
    """Whether it wants features of the prompt by itself."""
    needs_choices: ClassVar[bool] = True
    """Whether a user without comparisons is nobody to it; such a user gets the uniform score."""

    def __init__(self, shapes: Shapes, head: HeadSettings) -> None:
        super().__init__(shapes.features + shapes.prompts)
        self.shapes = shapes

    def training_vectors(self, choices: Choices, rows: Tensor) -> Tensor:
        """Vectors (N, D) of the users of these training comparisons, none made from the comparison itself."""
        raise NotImplementedError

    def seen_vectors(self, choices: Choices) -> Tensor:
        """Vectors (U, D) of the users of training, who made these choices."""
        return self.new_vectors(choices)

    def new_vectors(self, choices: Choices) -> Tensor:
        """Vectors (U, D) of users who were not in training, from their own choices alone; what is shared is not changed."""
        raise NotImplementedError

    def loss(self, choices: Choices, rows: Tensor) -> Tensor:
        """The loss, summed over these training comparisons: `-logsigmoid(score(chosen) - score(rejected))`."""
        return -functional.logsigmoid(self.margin(choices, rows, self.training_vectors(choices, rows))).sum()

    def margin(self, choices: Choices, rows: Tensor, user_ND: Tensor) -> Tensor:
        """`score(chosen) - score(rejected)` under users' vectors: (N,)."""
        texts = torch.cat([choices.chosen[rows], choices.rejected[rows]])
        chosen, rejected = self.score(self.hidden(choices.feature_RF[texts]), user_ND.repeat(2, 1)).chunk(2)
        return chosen - rejected

    def user_parameters(self) -> dict[str, float]:
        """Parameters that are the users' own rows, by name, and the rate at which these are learnt. They are not saved."""
        return {}


class HeadMethod(Method):
    """A method that is the shared head, and differs in what it knows of users.

    Args:
        user_dim: Width of a user's vector, 0 for none.
    """

    def __init__(self, shapes: Shapes, head: HeadSettings, *, user_dim: int) -> None:
        super().__init__(shapes, head)
        self.inner = make_head(head, feature_dim=shapes.features, user_dim=user_dim)

    def hidden(self, feature_NF: Tensor) -> Tensor:
        """See `RewardHead.hidden`."""
        return self.inner.hidden(self.standardise(feature_NF))

    def score(self, hidden_NH: Tensor, user_ND: Tensor | None) -> Tensor:
        """See `RewardHead.score`."""
        return self.inner.score(hidden_NH, user_ND)
