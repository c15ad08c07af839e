"""A layer that is no message passing: users are of K kinds, and a user is the probability of each (`layer: mixture`).

What a response starts from becomes its reward under every kind, `r_k(x)`. A user becomes the posterior over kinds given their
visible comparisons, `w_uk ~ p_k product_i sigmoid(r_k(chosen_i) - r_k(rejected_i))`, where the logits of the prior p are what
the user starts from. So the graph stage's loss, `-logsigmoid(e_u . (e_chosen - e_rejected))` for comparisons that are left out,
is that of the mean of the kinds' rewards. `methods/mixture.py` is the same idea without the graph stage, and has the source.

Users who never met the same response still are of one kind: that is what helps where choices are few. A user hears of their own
comparisons alone, so workers exchange no messages for it. It has `PreferenceLayer`'s interface and sums no messages.

Shapes: U users, R responses, C comparisons, K kinds (the encoder's dim).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from penchant.graph.layers import PreferenceLayer
from penchant.graph.preference_graph import Messages
from penchant.graph.sampling import DROPOUT_STREAM, uniform
from penchant.graph.sparse import Edges, chunks

DROPOUT = 0.2
"""Share of a response's hidden units that a training step leaves out."""


class MixtureLayer(PreferenceLayer):
    """See the module."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.shared, self.own = nn.Linear(dim, 1, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, user_UD: Tensor, response_RD: Tensor, graph: Messages) -> tuple[Tensor, Tensor]:
        """See `PreferenceLayer.forward`."""
        reward_RK = self._rewards(response_RD, graph.step)
        return self._posterior(user_UD, reward_RK, graph), reward_RK

    def forward_users(self, user_UD: Tensor, response_RD: Tensor, graph: Messages) -> Tensor:
        """See `PreferenceLayer.forward_users`."""
        return self._posterior(user_UD, self._rewards(response_RD), graph)

    def update_node(self, own_ND: Tensor, positive_ND: Tensor, negative_ND: Tensor) -> Tensor:
        """Rewards of responses under every kind; they hear nothing."""
        return self._rewards(own_ND)

    def _rewards(self, response_RD: Tensor, training_step: tuple[int, int] | None = None) -> Tensor:
        hidden_RD = response_RD.relu()
        if training_step is not None:
            seed, step = training_step
            unit = torch.arange(hidden_RD.numel(), device=hidden_RD.device).view_as(hidden_RD)
            kept = uniform(unit, seed=seed, step=step, stream=DROPOUT_STREAM) >= DROPOUT  # the same on every worker
            hidden_RD = hidden_RD * kept / (1 - DROPOUT)
        return self.shared(hidden_RD) + self.own(hidden_RD)

    def _posterior(self, user_UD: Tensor, reward_RK: Tensor, graph: Messages) -> Tensor:
        visible_C = graph.positive.visible * graph.negative.visible
        likelihood_UK = choice_likelihoods(graph.positive.edges, graph.negative.edges, visible_C, reward_RK, len(user_UD))
        return (user_UD.log_softmax(-1) + likelihood_UK).softmax(-1)


class _ChoiceLikelihoods(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chosen: Edges, rejected: Edges, visible_C: Tensor, reward_RK: Tensor, num_users: int) -> Tensor:
        ctx.chosen, ctx.rejected = chosen, rejected
        ctx.save_for_backward(visible_C, reward_RK)
        likelihood_UK = reward_RK.new_zeros(num_users, reward_RK.shape[1])
        for part in chunks(len(visible_C), reward_RK):
            ends = chosen.response[part], rejected.response[part]
            margin = reward_RK.index_select(0, ends[0]) - reward_RK.index_select(0, ends[1])
            likelihood_UK.index_add_(0, chosen.user[part], functional.logsigmoid(margin) * visible_C[part, None])
        return likelihood_UK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (likelihood_UK,) = gradients
        visible_C, reward_RK = ctx.saved_tensors
        gradient_RK = torch.zeros_like(reward_RK)
        for part in chunks(len(visible_C), reward_RK):
            ends = ctx.chosen.response[part], ctx.rejected.response[part]
            margin = reward_RK.index_select(0, ends[0]) - reward_RK.index_select(0, ends[1])
            slope = torch.sigmoid(-margin) * visible_C[part, None]
            slope *= likelihood_UK.index_select(0, ctx.chosen.user[part])
            gradient_RK.index_add_(0, ends[0], slope).index_add_(0, ends[1], -slope)
        return None, None, None, gradient_RK, None


def choice_likelihoods(chosen: Edges, rejected: Edges, visible_C: Tensor, reward_RK: Tensor, num_users: int) -> Tensor:
    """`sum over a user's visible comparisons of logsigmoid(r(chosen) - r(rejected))`, for every kind: (U, K).

    Edge k of both signs is comparison k. Differentiable in the rewards; nothing C x K is ever held.
    """
    return _ChoiceLikelihoods.apply(chosen, rejected, visible_C, reward_RK, num_users)
