"""Encoding each distinct (text, route) once, whoever asks for it.

Shapes: B askings (a text for a user), S sequences to encode, N distinct users.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from penchant.reward.mole.routing import Route, Routing


@dataclass(frozen=True)
class Sequences:
    """What has to be encoded, and for whom."""

    text: Tensor
    """int64 (S,): each sequence's text."""
    asking: Tensor
    """int64 (B,): the sequence that answers each asking."""
    routing: Routing | None
    """Of the sequences; None where there are no routes."""


def distinct_sequences(
    text_B: Tensor, routing: Routing | None, *, routes_are_few: bool, everyone_B: Tensor | None = None
) -> Sequences:
    """Each distinct (text, route) once.

    Args:
        text_B: The text of each asking.
        routing: Routes, whose `user_index` (B,) says who asks; None where all get the same (a base with plain LoRA).
        routes_are_few: Users who have the same expert have the same route (one gate, top-1, straight-through weights), and
            share its sequences. A sequence's weight is then the mean of theirs: the same 1 forward, and in the backward pass
            each of them gets an equal part. Otherwise a route is a user's own.
        everyone_B: bool (B,): texts that are read by the shared expert alone, for whoever asks; only where routes are few.
    """
    if routing is None:
        text, asking = torch.unique(text_B, return_inverse=True)
        return Sequences(text, asking, None)
    route = routing.distinct()[0]
    if not routes_are_few:
        text, owner, asking = _distinct(text_B, routing.user_index)
        return Sequences(text, asking, Routing(routing.routes, owner))
    experts = route.probability.shape[1]
    owner_B = route.expert[routing.user_index, 0]
    weight_B = route.weight[routing.user_index, 0]
    if everyone_B is not None:
        owner_B, weight_B = owner_B.masked_fill(everyone_B, experts), weight_B.masked_fill(everyone_B, 0)
    text, owner, asking = _distinct(text_B, owner_B)
    total_S = torch.zeros(len(text), dtype=weight_B.dtype, device=weight_B.device).index_add(0, asking, weight_B)
    weight_S = total_S / torch.bincount(asking, minlength=len(text))
    shared = Route(owner.clamp(max=experts - 1)[:, None], weight_S[:, None], route.probability)
    index = torch.arange(len(text), device=text_B.device)
    return Sequences(text, asking, Routing(dict.fromkeys(routing.routes, shared), index))


def _distinct(text_B: Tensor, owner_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct (text, owner) pairs, and which of them each asking is."""
    pairs, asking = torch.unique(torch.stack([text_B, owner_B]), dim=1, return_inverse=True)
    return pairs[0], pairs[1], asking
