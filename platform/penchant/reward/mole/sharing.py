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


def distinct_sequences(text_B: Tensor, routing: Routing | None, *, routes_are_few: bool) -> Sequences:
    """Each distinct (text, route) once.

    Args:
        text_B: The text of each asking.
        routing: Routes, whose `user_index` (B,) says who asks; None where all get the same (a base with plain LoRA).
        routes_are_few: Users who have the same expert have the same route (one gate, top-1, straight-through weights), and
            share its sequences. A sequence's weight is then the mean of theirs: the same 1 forward, and in the backward pass
            each of them gets an equal part. Otherwise a route is a user's own.
    """
    if routing is None:
        text, asking = torch.unique(text_B, return_inverse=True)
        return Sequences(text, asking, None)
    route = routing.distinct()[0]
    owner_B = route.expert[routing.user_index, 0] if routes_are_few else routing.user_index
    count = int(owner_B.max()) + 1 if len(owner_B) else 1
    code, asking = torch.unique(text_B * count + owner_B, return_inverse=True)
    text, owner = code // count, code % count
    if not routes_are_few:
        return Sequences(text, asking, Routing(routing.routes, owner))
    weight_B = route.weight[routing.user_index, 0]
    total_S = torch.zeros(len(code), dtype=weight_B.dtype, device=weight_B.device).index_add(0, asking, weight_B)
    weight_S = total_S / torch.bincount(asking, minlength=len(code))
    shared = Route(owner[:, None], weight_S[:, None], route.probability)
    index = torch.arange(len(code), device=text_B.device)
    return Sequences(text, asking, Routing(dict.fromkeys(routing.routes, shared), index))
