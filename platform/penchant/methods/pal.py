"""PAL: pluralistic alignment by ideal points (Chen et al., arXiv 2406.08469; ICLR 2025), models A and B.

Both give a user weights on the simplex over K prototypes, `w_u = softmax(a_u)`, and learn a map `f` of texts into a space of
preferences. A user's weights are learnt with the prototypes; a new user's with `f` and the prototypes fixed.

Model A: a user is a point, `a_u = f(P w_u)` (the authors' `f(Pw)`: prototypes lie among the features), and likes what is near:
`r_u(x) = -||f(x) - a_u||^2`.
Model B: what a user looks for depends on the prompt c, by K maps of it: `r_u(x) = <f(x), sum_k w_uk g_k(c)>`.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from penchant.methods.fitted import FittedMethod, FittedSettings
from penchant.methods.method import Shapes
from penchant.reward.config import HeadSettings


class _PALSettings(FittedSettings):
    prototypes: int = Field(8, ge=1)
    """K. The paper has 2 where two kinds of people were planted."""
    dim: int = Field(64, ge=1)
    """Width of the space of preferences, and of the hidden layer of each map into it."""


class PALASettings(_PALSettings):
    """Ideal points between prototypes."""

    name: Literal["pal-a"] = "pal-a"


class PALBSettings(_PALSettings):
    """Prototypes that depend on the prompt."""

    name: Literal["pal-b"] = "pal-b"


def _two_layers(inputs: int, outputs: int, dropout: float) -> nn.Module:
    # The authors have no dropout, and a tenth of our learning rate; here every method has that of the shared head.
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout), nn.Linear(outputs, outputs))


class PALA(FittedMethod):
    """Model A. A user's vector is their ideal point."""

    def __init__(self, settings: PALASettings, shapes: Shapes, head: HeadSettings) -> None:
        super().__init__(settings, shapes, head, row_dim=settings.prototypes)
        self.project = _two_layers(shapes.features, settings.dim, head.dropout)
        # Texts' features are standardised: these are K texts that nobody wrote.
        self.prototype_KF = nn.Parameter(torch.randn(settings.prototypes, shapes.features))

    def vectors(self, row_ND: Tensor) -> Tensor:
        """See `FittedMethod.vectors`."""
        return self.project(row_ND.softmax(-1) @ self.prototype_KF)

    def hidden(self, feature_NF: Tensor) -> Tensor:
        """See `RewardHead.hidden`: where a text lies."""
        return self.project(self.standardise(feature_NF))

    def score(self, hidden_NH: Tensor, user_ND: Tensor | None) -> Tensor:
        """See `RewardHead.score`; without a user, of the average one."""
        if user_ND is None:
            user_ND = self.vectors(self.user_rows.new_zeros(1, self.user_rows.shape[1]))
        return -(hidden_NH - user_ND).square().sum(-1)


class PALB(FittedMethod):
    """Model B. A user's vector is their weights, and a text is known by what each prototype thinks of it."""

    reads_prompts = True

    def __init__(self, settings: PALBSettings, shapes: Shapes, head: HeadSettings) -> None:
        super().__init__(settings, shapes, head, row_dim=settings.prototypes)
        self.project = _two_layers(shapes.features, settings.dim, head.dropout)
        self.wishes = nn.ModuleList(_two_layers(shapes.prompts, settings.dim, head.dropout) for _ in range(settings.prototypes))

    def vectors(self, row_ND: Tensor) -> Tensor:
        """See `FittedMethod.vectors`: weights on the simplex."""
        return row_ND.softmax(-1)

    def hidden(self, feature_NF: Tensor) -> Tensor:
        """See `RewardHead.hidden`: `<f(x), g_k(c)>` for each k, (N, K)."""
        text_NF, prompt_NF = self.standardise(feature_NF).split([self.shapes.features, self.shapes.prompts], dim=-1)
        wish_NKD = torch.stack([wish(prompt_NF) for wish in self.wishes], dim=1)
        return (wish_NKD * self.project(text_NF)[:, None]).sum(-1)

    def score(self, hidden_NH: Tensor, user_ND: Tensor | None) -> Tensor:
        """See `RewardHead.score`; without a user, of the average one."""
        return hidden_NH.mean(-1) if user_ND is None else (user_ND * hidden_NH).sum(-1)
