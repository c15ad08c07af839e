"""Message-passing layers over the signed bipartite graph, behind one interface.

Each layer is a PyG `MessagePassing` module. Its `forward` is the fused path: products of a sparse matrix and a dense one,
sharded by user. `message` is the same sum edge by edge, as PyG's `propagate` runs it; the tests hold one against the other.

Shapes: U users of this worker, R responses (replicated), D dim, E edges, S = 2 signs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import MessagePassing
from torch_geometric.typing import PairTensor

from penchant.graph.preference_graph import Messages, SignedWeights
from penchant.graph.sparse import aggregate_to_responses, aggregate_to_users

LEAK = 0.2
"""Slope of LeakyReLU below zero (CoPL, section 3.1)."""


class PreferenceLayer(MessagePassing):
    """One round of messages: users hear from the responses that they chose and rejected, and responses from users."""

    propagate_type: ClassVar[dict[str, object]] = {"x": PairTensor, "weight": Tensor, "sign": int}
    """What `propagate` takes besides the edges; PyG reads it."""

    def __init__(self, dim: int) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.dim = dim

    def forward(self, user_UD: Tensor, response_RD: Tensor, graph: Messages) -> tuple[Tensor, Tensor]:
        """New user (U, D) and response (R, D) embeddings."""
        signs = list(enumerate((graph.positive, graph.negative)))
        partial_SRK = torch.stack([self.partial_sums(weights, sign, user_UD, response_RD, graph) for sign, weights in signs])
        summed_SRK = graph.collective.sum(partial_SRK)  # both signs in one exchange
        positive_RD, negative_RD = (
            self.finish_responses(weights, sign, response_RD, summed_SRK[sign]) for sign, weights in signs
        )
        return (
            self.forward_users(user_UD, response_RD, graph),
            self.update_node(response_RD, positive_RD, negative_RD),
        )

    def forward_users(self, user_UD: Tensor, response_RD: Tensor, graph: Messages) -> Tensor:
        """New user embeddings alone (U, D): all that embedding a new user needs."""
        positive_UD, negative_UD = (
            self.aggregate_users(weights, sign, user_UD, response_RD)
            for sign, weights in enumerate((graph.positive, graph.negative))
        )
        return self.update_node(user_UD, positive_UD, negative_UD)

    def aggregate_users(self, weights: SignedWeights, sign: int, user_UD: Tensor, response_RD: Tensor) -> Tensor:
        """Sum of each user's messages of one sign (0: chosen, 1: rejected): (U, D)."""
        return aggregate_to_users(weights.edges, weights.symmetric, response_RD)

    def partial_sums(self, weights: SignedWeights, sign: int, user_UD: Tensor, response_RD: Tensor, graph: Messages) -> Tensor:
        """What this worker's users add to the sums of one sign that responses are to have: (R, K), K as the layer needs."""
        return aggregate_to_responses(weights.edges, weights.symmetric, user_UD)

    def finish_responses(self, weights: SignedWeights, sign: int, response_RD: Tensor, summed_RK: Tensor) -> Tensor:
        """Sum of each response's messages of one sign (R, D), from what all workers' partial sums add up to."""
        return summed_RK

    def update_node(self, own_ND: Tensor, positive_ND: Tensor, negative_ND: Tensor) -> Tensor:
        """A node's new embedding from its own and its aggregated messages: (N, D)."""
        raise NotImplementedError

    def message(self, x_j: Tensor, x_i: Tensor, weight: Tensor, sign: int) -> Tensor:  # type: ignore[override]
        """One message per edge: (E, D). The plain form of what `aggregate_users` and `finish_responses` sum."""
        return weight[:, None] * x_j


class CoplLayer(PreferenceLayer):
    """CoPL's layer (arXiv 2503.01658, section 3.1): `m+ = sum a (e_r + W+ (e_r * e_u))`, `e_u' = LeakyReLU(W e_u + m+ - m-)`.

    The sum pulls out of the product: `sum a (e_r * e_u) = e_u * sum a e_r`, so a sign costs one sparse product.
    With `neighbour_projection` the first term is `W e_r`, as the paper writes it (the authors' code has `e_r`).
    """

    def __init__(self, dim: int, *, neighbour_projection: bool = False) -> None:
        super().__init__(dim)
        self.own = nn.Linear(dim, dim, bias=False)
        self.interaction = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.neighbour = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(2 if neighbour_projection else 0))

    def _mix(self, sign: int, own_ND: Tensor, summed_ND: Tensor) -> Tensor:
        neighbour = self.neighbour[sign](summed_ND) if len(self.neighbour) else summed_ND
        return neighbour + self.interaction[sign](summed_ND * own_ND)

    def aggregate_users(self, weights: SignedWeights, sign: int, user_UD: Tensor, response_RD: Tensor) -> Tensor:
        """See `PreferenceLayer.aggregate_users`."""
        return self._mix(sign, user_UD, super().aggregate_users(weights, sign, user_UD, response_RD))

    def finish_responses(self, weights: SignedWeights, sign: int, response_RD: Tensor, summed_RK: Tensor) -> Tensor:
        """See `PreferenceLayer.finish_responses`."""
        return self._mix(sign, response_RD, summed_RK)

    def update_node(self, own_ND: Tensor, positive_ND: Tensor, negative_ND: Tensor) -> Tensor:
        """See `PreferenceLayer.update_node`."""
        return functional.leaky_relu(self.own(own_ND) + positive_ND - negative_ND, LEAK)

    def message(self, x_j: Tensor, x_i: Tensor, weight: Tensor, sign: int) -> Tensor:  # type: ignore[override]
        """See `PreferenceLayer.message`."""
        return weight[:, None] * self._mix(sign, x_i, x_j)


class LightGcnLayer(PreferenceLayer):
    """LightGCN's layer (arXiv 2002.02126, eq. 3) with signs: `e' = e + m+ - m-`, no weights and no activation.

    The node keeps its own embedding in the sum, which stands for LightGCN's mean over layers.
    """

    def update_node(self, own_ND: Tensor, positive_ND: Tensor, negative_ND: Tensor) -> Tensor:
        """See `PreferenceLayer.update_node`."""
        return own_ND + positive_ND - negative_ND


class SageLayer(PreferenceLayer):
    """GraphSAGE's mean aggregator (arXiv 1706.02216, algorithm 1), one weight matrix for each sign.

    The algorithm brings every node to length 1 after each round (its line 7); here only the last user embedding is, by whoever
    reads it. Kept so: what was measured was measured without.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.own = nn.Linear(dim, dim)
        self.neighbour = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(2))

    def aggregate_users(self, weights: SignedWeights, sign: int, user_UD: Tensor, response_RD: Tensor) -> Tensor:
        """See `PreferenceLayer.aggregate_users`."""
        total = aggregate_to_users(weights.edges, weights.visible, response_RD)
        return self.neighbour[sign](total / weights.user_degree.clamp(min=1)[:, None])

    def partial_sums(self, weights: SignedWeights, sign: int, user_UD: Tensor, response_RD: Tensor, graph: Messages) -> Tensor:
        """See `PreferenceLayer.partial_sums`."""
        return aggregate_to_responses(weights.edges, weights.visible, user_UD)

    def finish_responses(self, weights: SignedWeights, sign: int, response_RD: Tensor, summed_RK: Tensor) -> Tensor:
        """See `PreferenceLayer.finish_responses`."""
        return self.neighbour[sign](summed_RK / weights.response_degree.clamp(min=1)[:, None])

    def update_node(self, own_ND: Tensor, positive_ND: Tensor, negative_ND: Tensor) -> Tensor:
        """See `PreferenceLayer.update_node`."""
        return functional.leaky_relu(self.own(own_ND) + positive_ND - negative_ND, LEAK)

    def message(self, x_j: Tensor, x_i: Tensor, weight: Tensor, sign: int) -> Tensor:  # type: ignore[override]
        """See `PreferenceLayer.message`."""
        return weight[:, None] * self.neighbour[sign](x_j)


class GatLayer(PreferenceLayer):
    """Graph attention (arXiv 1710.10903, after eq. 3), one head for each sign: a softmax over a node's edges of that sign.

    Two things are not as in the paper. Its logit reads both ends projected, `a . [W h_i || W h_j]`; here the receiver is read as
    it is, `a . [h_i || W h_j]`, which can say the same (`a' = W^T a`) but is learnt otherwise. And its softmax counts the node
    itself among its neighbours; here the node comes in beside the softmax, by a map of its own. Kept so: what was measured was
    measured so.

    Users find their softmax on their own worker. A response's edges are spread over workers, which exchange the largest
    logit, the denominator and the numerator.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.own = nn.Linear(dim, dim)
        self.neighbour = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.attention = nn.Parameter(torch.empty(2, 2, dim))
        """[sign, receiver or sender, D]"""
        nn.init.normal_(self.attention, std=dim**-0.5)

    def aggregate_users(self, weights: SignedWeights, sign: int, user_UD: Tensor, response_RD: Tensor) -> Tensor:
        """See `PreferenceLayer.aggregate_users`."""
        sent_RD = self.neighbour[sign](response_RD)
        user = weights.edges.user
        logit_E = self._logits(sign, user_UD, user, sent_RD, weights.edges.response.long())
        largest_U = _segment_maximum(logit_E, weights.visible, user, len(user_UD))
        share_E = _share(logit_E, largest_U[user], weights.visible)
        total_U = share_E.new_zeros(len(user_UD)).index_add(0, user, share_E)
        return aggregate_to_users(weights.edges, share_E, sent_RD) / total_U.clamp(min=1e-12)[:, None]

    def partial_sums(self, weights: SignedWeights, sign: int, user_UD: Tensor, response_RD: Tensor, graph: Messages) -> Tensor:
        """Numerators and, in the last column, denominators: (R, D + 1). See `PreferenceLayer.partial_sums`."""
        sent_UD = self.neighbour[sign](user_UD)
        response = weights.edges.response.long()
        logit_E = self._logits(sign, response_RD, response, sent_UD, weights.edges.user)
        largest_R = _segment_maximum(logit_E, weights.visible, response, len(response_RD))
        largest_R = graph.collective.maximum(largest_R)
        share_E = _share(logit_E, largest_R[response], weights.visible)
        total_R = share_E.new_zeros(len(response_RD)).index_add(0, response, share_E)
        return torch.cat([aggregate_to_responses(weights.edges, share_E, sent_UD), total_R[:, None]], dim=1)

    def finish_responses(self, weights: SignedWeights, sign: int, response_RD: Tensor, summed_RK: Tensor) -> Tensor:
        """See `PreferenceLayer.finish_responses`."""
        return summed_RK[:, :-1] / summed_RK[:, -1:].clamp(min=1e-12)

    def _logits(self, sign: int, receiver_ND: Tensor, receiver_E: Tensor, sent_ND: Tensor, sender_E: Tensor) -> Tensor:
        received_N = receiver_ND @ self.attention[sign, 0]
        sent_N = sent_ND @ self.attention[sign, 1]
        return functional.leaky_relu(received_N[receiver_E] + sent_N[sender_E], LEAK)

    def update_node(self, own_ND: Tensor, positive_ND: Tensor, negative_ND: Tensor) -> Tensor:
        """See `PreferenceLayer.update_node`."""
        return functional.leaky_relu(self.own(own_ND) + positive_ND - negative_ND, LEAK)


def _segment_maximum(value_E: Tensor, visible_E: Tensor, index_E: Tensor, size: int) -> Tensor:
    """The largest visible value of each segment, -inf for an empty one: (size,). A constant shift: no gradient."""
    hidden_E = value_E.detach().masked_fill(visible_E == 0, -torch.inf)
    return hidden_E.new_full((size,), -torch.inf).scatter_reduce(0, index_E, hidden_E, "amax")


def _share(logit_E: Tensor, largest_E: Tensor, visible_E: Tensor) -> Tensor:
    """`exp(logit - largest)` on visible edges and 0 on the others, whose logit may exceed the largest visible one."""
    shifted_E = (logit_E - largest_E).masked_fill(visible_E == 0, -torch.inf)
    return torch.exp(shifted_E)


LAYERS: dict[str, type[PreferenceLayer]] = {
    "copl": CoplLayer,
    "lightgcn": LightGcnLayer,
    "sage": SageLayer,
    "gat": GatLayer,
}
"""Layer kinds by the name that settings use."""
