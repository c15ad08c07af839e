"""The part of the preference graph that one worker owns: a range of users and all their comparisons.

Comparison k is two edges: `+` from its user to what was chosen, `-` to what was rejected. Edges are kept with their
multiplicity, so that leaving a comparison out is setting two weights to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penchant.graph.collectives import Collective
from penchant.graph.sparse import Edges


@dataclass(frozen=True)
class PreferenceShard:
    """Users `first_user` to `first_user + num_users`, with the edges of their C comparisons."""

    first_user: int
    num_users: int
    num_responses: int
    positive: Edges
    """Edge k goes to what comparison k chose."""
    negative: Edges
    """Edge k goes to what comparison k rejected."""
    comparison: Tensor
    """int64 (C,): each comparison's number over all workers; random choices hash it."""

    @classmethod
    def build(
        cls,
        user: np.ndarray,
        chosen: np.ndarray,
        rejected: np.ndarray,
        comparison: np.ndarray,
        *,
        first_user: int,
        num_users: int,
        num_responses: int,
    ) -> PreferenceShard:
        """Builds the shard from aligned arrays (C,) of global row numbers, in any order.

        Raises:
            ValueError: A user outside this shard's range.
        """
        local = np.asarray(user, dtype=np.int64) - first_user
        if len(local) and (local.min() < 0 or local.max() >= num_users):
            raise ValueError("A comparison belongs to a user of another shard.")
        order = np.argsort(local, kind="stable")
        user_C = torch.from_numpy(local[order])
        ends = [torch.from_numpy(np.asarray(side, dtype=np.int64)[order]) for side in (chosen, rejected)]
        positive, negative = (Edges.build(user_C, end, num_users, num_responses) for end in ends)
        return cls(
            first_user=first_user,
            num_users=num_users,
            num_responses=num_responses,
            positive=positive,
            negative=negative,
            comparison=torch.from_numpy(np.asarray(comparison, dtype=np.int64)[order]),
        )

    def to(self, device: torch.device | str) -> PreferenceShard:
        """The same shard on another device."""
        return PreferenceShard(
            first_user=self.first_user,
            num_users=self.num_users,
            num_responses=self.num_responses,
            positive=self.positive.to(device),
            negative=self.negative.to(device),
            comparison=self.comparison.to(device),
        )

    def __len__(self) -> int:
        return len(self.comparison)


@dataclass(frozen=True)
class Messages:
    """Which edges carry messages in this pass, with the weights `a = 1/sqrt(deg deg)` and `1/deg` that layers use."""

    shard: PreferenceShard
    positive: SignedWeights
    negative: SignedWeights
    collective: Collective
    step: tuple[int, int] | None = None
    """Seed and number of the training step, for what a layer draws at random; None where it is to draw nothing."""


@dataclass(frozen=True)
class SignedWeights:
    """Weights of the edges of one sign. Degrees count visible edges only, over all workers."""

    edges: Edges
    visible: Tensor
    """(C,): 1 where the edge carries a message, else 0."""
    symmetric: Tensor
    """(C,): `1/sqrt(deg_u deg_r)` where visible, else 0."""
    user_degree: Tensor
    """(U,)"""
    response_degree: Tensor
    """(R,), over all workers."""

    @classmethod
    def build(cls, edges: Edges, visible: Tensor, user_degree: Tensor, response_degree: Tensor) -> SignedWeights:
        """The weights that follow from the degrees of the visible edges."""
        symmetric = visible * inverse_root(user_degree)[edges.user] * inverse_root(response_degree)[edges.response]
        return cls(edges, visible, symmetric, user_degree, response_degree)


def inverse_root(degree: Tensor) -> Tensor:
    """`1/sqrt(degree)`, and 0 for a node without edges."""
    return torch.where(degree > 0, degree.clamp(min=1e-12).rsqrt(), torch.zeros_like(degree))


def messages(
    shard: PreferenceShard,
    collective: Collective,
    *,
    positive: Tensor | None = None,
    negative: Tensor | None = None,
    step: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Messages:
    """The message-passing view of a shard; `positive` and `negative` (C,) say which edges are visible (default: all).

    Args:
        step: See `Messages`.
    """
    everything = torch.ones(len(shard), dtype=dtype, device=shard.comparison.device)
    signs = [
        (edges, everything if visible is None else visible)
        for edges, visible in ((shard.positive, positive), (shard.negative, negative))
    ]
    degrees = [edges.degrees(visible) for edges, visible in signs]
    response_degree_SR = collective.sum(torch.stack([of_response for _, of_response in degrees]))
    chosen, rejected = (
        SignedWeights.build(*sign, of_user, of_response)
        for sign, (of_user, _), of_response in zip(signs, degrees, response_degree_SR, strict=True)
    )
    return Messages(shard, positive=chosen, negative=rejected, collective=collective, step=step)


def user_range(rank: int, world_size: int, num_users: int) -> tuple[int, int]:
    """The users [start, stop) that a worker owns: ranges as even as can be, in order of rank."""
    return num_users * rank // world_size, num_users * (rank + 1) // world_size
