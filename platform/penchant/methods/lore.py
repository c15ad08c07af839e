"""LoRe: low-rank reward modelling (Bose et al., arXiv 2504.14439).

`r_u(x) = <w_u, R(x)>`: a basis of B rewards, `R(x) = V x` linear in the frozen features as in the paper's experiments, and
weights on the simplex, `w_u = softmax(a_u)`. Basis and weights are learnt together by the Bradley-Terry loss; a new user's
weights from a few comparisons with the basis fixed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from penchant.methods.fitted import FittedMethod, FittedSettings
from penchant.methods.method import Shapes
from penchant.reward.config import HeadSettings


class LoReSettings(FittedSettings):
    """A basis of rewards, and a user's weights on it."""

    name: Literal["lore"] = "lore"
    basis: int = Field(8, ge=1)
    """B: rewards in the basis. The paper tries 0 to 50."""


class LoRe(FittedMethod):
    """See the module."""

    def __init__(self, settings: LoReSettings, shapes: Shapes, head: HeadSettings) -> None:
        super().__init__(settings, shapes, head, row_dim=settings.basis)
        self.basis = nn.Linear(shapes.features, settings.basis, bias=False)

    def vectors(self, row_ND: Tensor) -> Tensor:
        """See `FittedMethod.vectors`: weights on the simplex."""
        return row_ND.softmax(-1)

    def hidden(self, feature_NF: Tensor) -> Tensor:
        """See `RewardHead.hidden`: every reward of the basis, (N, B)."""
        return self.basis(self.standardise(feature_NF))

    def score(self, hidden_NH: Tensor, user_ND: Tensor | None) -> Tensor:
        """See `RewardHead.score`; without a user, of the average one."""
        return hidden_NH.mean(-1) if user_ND is None else (user_ND * hidden_NH).sum(-1)
