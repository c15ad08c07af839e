"""A mixture of K rewards: users are of K kinds, and nobody says who is of which.

Chakraborty et al. (MaxMin-RLHF, arXiv 2402.08925) fit a mixture by expectation-maximisation, with every user wholly of one kind.
Here a user is of each kind with a probability, by Bayes' rule: `w_uk ~ p_k product_i sigmoid(m_ik)`, where `p_k` is how frequent
the kind is and `m_ik` the margin of the user's comparison i under the kind's reward. A user's reward is the mean of the kinds',
`r_u = sum_k w_uk r_k`. A kind's reward is the shared head's: a term that all share and one of its own, linear in a hidden layer.

There is no alternation: w is a part of the model, and gradients go through it. A comparison is explained by w from the user's
others alone, or it would vouch for itself. A user, seen or new, is w: no optimisation.

Shapes: K kinds (as wide is what is read of a text, and a user's vector), N comparisons of a batch, V their users, P all
comparisons of these.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from penchant.config import Settings
from penchant.methods.method import Choices, Method, Shapes
from penchant.reward.config import HeadSettings


class MixtureSettings(Settings):
    """Kinds of users."""

    name: Literal["mixture"] = "mixture"
    kinds: int = Field(16, ge=1)
    """K: rather more than there may be."""


class Mixture(Method):
    """See the module. A user's vector is the probability of each kind."""

    needs_choices = False

    def __init__(self, settings: MixtureSettings, shapes: Shapes, head: HeadSettings) -> None:
        super().__init__(shapes, head)
        self.encode = nn.Sequential(nn.Linear(shapes.features, head.hidden), nn.ReLU(), nn.Dropout(head.dropout))
        self.shared, self.own = nn.Linear(head.hidden, 1, bias=False), nn.Linear(head.hidden, settings.kinds, bias=False)
        self.frequency_K = nn.Parameter(torch.zeros(settings.kinds))
        """Logits of p."""

    def hidden(self, feature_NF: Tensor) -> Tensor:
        """See `RewardHead.hidden`: every kind's reward, (N, K)."""
        encoded_NH = self.encode(self.standardise(feature_NF))
        return self.shared(encoded_NH) + self.own(encoded_NH)

    def score(self, hidden_NH: Tensor, user_ND: Tensor | None) -> Tensor:
        """See `RewardHead.score`; without a user, of one of whom nothing is known."""
        return (hidden_NH * (self.frequency_K.softmax(-1) if user_ND is None else user_ND)).sum(-1)

    def training_vectors(self, choices: Choices, rows: Tensor) -> Tensor:
        """See `Method.training_vectors`."""
        order, start = choices.by_user()
        users, user_N = choices.user[rows].unique(return_inverse=True)
        count_V = start[users + 1] - start[users]
        user_P = torch.arange(len(users), device=rows.device).repeat_interleave(count_V)
        nth_P = torch.arange(len(user_P), device=rows.device) - (count_V.cumsum(0) - count_V)[user_P]
        read_P = order[start[users][user_P] + nth_P]
        likelihood_PK = self._likelihood(choices, read_P)
        place = torch.empty_like(order).index_copy_(0, read_P, torch.arange(len(read_P), device=rows.device))
        whole_VK = likelihood_PK.new_zeros(len(users), len(self.frequency_K)).index_add(0, user_P, likelihood_PK)
        return self._posterior(whole_VK[user_N] - likelihood_PK.index_select(0, place[rows]))

    @torch.no_grad()
    def new_vectors(self, choices: Choices) -> Tensor:
        """See `Method.new_vectors`."""
        likelihood_CK = self._likelihood(choices, torch.arange(len(choices), device=choices.user.device))
        whole_UK = likelihood_CK.new_zeros(choices.num_users, len(self.frequency_K)).index_add(0, choices.user, likelihood_CK)
        return self._posterior(whole_UK)

    def _likelihood(self, choices: Choices, rows: Tensor) -> Tensor:
        """How likely each kind is to choose so, as a logarithm: (P, K)."""
        texts, at = torch.cat([choices.chosen[rows], choices.rejected[rows]]).unique(return_inverse=True)
        chosen_PK, rejected_PK = self.hidden(choices.feature_RF[texts]).index_select(0, at).chunk(2)
        return functional.logsigmoid(chosen_PK - rejected_PK)

    def _posterior(self, likelihood_NK: Tensor) -> Tensor:
        return (likelihood_NK + self.frequency_K.log_softmax(-1)).softmax(-1)
