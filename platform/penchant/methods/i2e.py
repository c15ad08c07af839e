"""Individual embeddings, of the user or of what stands for the user (Li et al., P-RLHF, arXiv 2402.05133; CoPL's I2E and proxy).

A user's embedding is `e_u = e_0 + o_u`, a generic one that all share and an offset of their own (P-RLHF, example 2). Here it
enters through the two-term head, as Penchant's does; the papers put it in front of the language model's input. Training explains
each choice twice, by the user's own embedding and by the generic one: `a l(e_u) + (1 - a) l(e_0)` (P-RLHF, the P-DPO objective),
so that `e_0` serves whom nothing is known of. Fitting the offset of a new user who has comparisons is ours. The
proxy has a row for each value of an attribute in place of each user.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from penchant.config import Settings
from penchant.methods.fitted import FittedMethod, FittedSettings
from penchant.methods.method import Choices, HeadMethod, Shapes
from penchant.reward.config import HeadSettings
from penchant.reward.heads import make_head


class I2ESettings(FittedSettings):
    """A learnt embedding for each user."""

    name: Literal["i2e"] = "i2e"
    dim: int = Field(64, ge=1)
    """Width of the embedding."""
    own_share: float = Field(0.5, gt=0, le=1)
    """`a`: the weight of the user's own embedding in the loss; the rest is the generic one's."""


class ProxySettings(Settings):
    """A learnt embedding for each value of an attribute of the users."""

    name: Literal["proxy"] = "proxy"
    dim: int = Field(64, ge=1)
    """Width of the embedding."""
    attribute: str = "group"
    """Column of the users' table. The paper's proxy is the group; where that is not known, something like a country or an age."""


class I2E(FittedMethod):
    """See the module. `generic` is `e_0`, which a user without comparisons gets; a new user's offset is fitted from 0 on."""

    needs_choices = False

    def __init__(self, settings: I2ESettings, shapes: Shapes, head: HeadSettings) -> None:
        super().__init__(settings, shapes, head, row_dim=settings.dim)
        self.own_share = settings.own_share
        self.generic = nn.Parameter(torch.zeros(settings.dim))
        self.inner = make_head(head, feature_dim=shapes.features, user_dim=settings.dim)

    def vectors(self, row_ND: Tensor) -> Tensor:
        """See `FittedMethod.vectors`."""
        return self.generic + row_ND

    def hidden(self, feature_NF: Tensor) -> Tensor:
        """See `RewardHead.hidden`."""
        return self.inner.hidden(self.standardise(feature_NF))

    def score(self, hidden_NH: Tensor, user_ND: Tensor | None) -> Tensor:
        """See `RewardHead.score`."""
        return self.inner.score(hidden_NH, user_ND)

    def loss(self, choices: Choices, rows: Tensor) -> Tensor:
        """See the module."""
        texts = torch.cat([choices.chosen[rows], choices.rejected[rows]])
        hidden_NH = self.hidden(choices.feature_RF[texts])
        own_ND = self.training_vectors(choices, rows)
        loss = own_ND.new_zeros(())
        for share, user_ND in ((self.own_share, own_ND), (1 - self.own_share, self.generic.expand_as(own_ND))):
            chosen, rejected = self.score(hidden_NH, user_ND.repeat(2, 1)).chunk(2)
            loss = loss - share * functional.logsigmoid(chosen - rejected).sum()
        return loss


class Proxy(HeadMethod):
    """See the module. The last row is whose attribute is not known, or has a value that training has not seen."""

    needs_choices = False

    def __init__(self, settings: ProxySettings, shapes: Shapes, head: HeadSettings) -> None:
        super().__init__(shapes, head, user_dim=settings.dim)
        self.rows = nn.Parameter(torch.zeros(shapes.attributes + 1, settings.dim))

    def training_vectors(self, choices: Choices, rows: Tensor) -> Tensor:
        """See `Method.training_vectors`."""
        assert choices.attribute_U is not None
        return self.rows[choices.attribute_U[choices.user[rows]]]

    def new_vectors(self, choices: Choices) -> Tensor:
        """See `Method.new_vectors`."""
        assert choices.attribute_U is not None
        return self.rows[choices.attribute_U].detach()
