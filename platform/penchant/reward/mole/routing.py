"""From users to routes, and how a route reaches the layers of one call.

A route belongs to a call, never to a module: it travels in a context variable, which each thread has for itself, and what is
recomputed in the backward pass is run again inside the scope that it first ran in.

Shapes: N distinct users of a call, B sequences, E experts, K experts that a user gets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_SHARPNESS = 4.0
"""Of a gate that starts as clusters: logits a few units apart leave every expert a share of the probability."""


@dataclass(frozen=True)
class Route:
    """Which experts each of N users gets, and their weights."""

    expert: Tensor
    """int64 (N, K)"""
    weight: Tensor
    """(N, K); differentiable."""
    probability: Tensor
    """(N, E): the gate's softmax."""

    def load(self) -> Tensor:
        """The share of the users' choices that each expert gets: (E,), summing to 1."""
        counts = torch.bincount(self.expert.flatten(), minlength=self.probability.shape[1])
        return counts.to(self.probability.dtype) / self.expert.numel()

    def balance_loss(self) -> Tensor:
        """`E sum_e load_e mean_probability_e` (Fedus et al., 2022, eq. 4): 1 where all are chosen evenly, E where one gets all.

        Its users are distinct, so that somebody with many comparisons does not count more.
        """
        return self.probability.shape[1] * (self.load().detach() * self.probability.mean(0)).sum()


@dataclass(frozen=True)
class Routing:
    """The routes of one call: by layer and adapter, over its distinct users, and which user each sequence is of."""

    routes: Mapping[tuple[nn.Module, str], Route]
    user_index: Tensor
    """int64 (B,): each sequence's row among the N users."""

    def take(self, row: Tensor) -> Routing:
        """The routing of the sequences at these rows."""
        return Routing(self.routes, self.user_index[row])

    def distinct(self) -> list[Route]:
        """Each gate's route, once."""
        return list({id(route): route for route in self.routes.values()}.values())

    def with_weights(self, weights: Sequence[Tensor]) -> Routing:
        """The same routing with other weights, one (N, K) for each of `distinct`."""
        changed = {id(route): replace(route, weight=weight) for route, weight in zip(self.distinct(), weights, strict=True)}
        return Routing({key: changed[id(route)] for key, route in self.routes.items()}, self.user_index)

    def balance_loss(self) -> Tensor:
        """Mean of the gates' load-balancing losses."""
        return torch.stack([route.balance_loss() for route in self.distinct()]).mean()


class Gate(nn.Module):
    """`MLP(e_u)`: logits of the experts (CoPL, eq. 7)."""

    def __init__(self, user_dim: int, hidden: int, num_experts: int) -> None:
        super().__init__()
        self.hidden, self.logits = nn.Linear(user_dim, hidden), nn.Linear(hidden, num_experts)

    def forward(self, user_ND: Tensor, *, noise: float, temperature: float, top_k: int, straight_through: bool) -> Route:
        """Routes of N distinct users; each draws noise once, in training alone."""
        logit_NE = self.logits(functional.relu(self.hidden(user_ND.to(self.hidden.weight.dtype))))
        if self.training and noise > 0:
            logit_NE = logit_NE + noise * torch.randn_like(logit_NE)
        probability_NE = torch.softmax(logit_NE / temperature, dim=-1)
        weight_NK, expert_NK = probability_NE.topk(top_k, dim=-1)
        if straight_through:
            weight_NK = weight_NK / weight_NK.detach().sum(-1, keepdim=True)
        return Route(expert_NK, weight_NK, probability_NE)

    @torch.no_grad()
    def start_as_clusters(self, centre_KD: Tensor) -> None:
        """Makes `logit_i = SHARPNESS cos(e_u, centre_i)` of the first K experts, and 0 of the others: a k-means of the users.

        Centres and user embeddings are L2-normalised, so `relu(centre . e + 1)` passes the cosine on whole.
        """
        count = len(centre_KD)
        self.hidden.weight[:count], self.hidden.bias[:count] = centre_KD.to(self.hidden.weight), 1.0
        self.logits.weight.zero_()
        self.logits.bias.zero_()
        self.logits.weight[:count, :count] = _SHARPNESS * torch.eye(count)
        self.logits.bias[:count] = -_SHARPNESS


_stack: ContextVar[tuple[Routing | None, ...]] = ContextVar("penchant_mole_routing", default=())


def current_routing() -> Routing | None:
    """The routing of the innermost call that runs in this thread, if there is one."""
    stack = _stack.get()
    return stack[-1] if stack else None


def push_routing(routing: Routing | None) -> None:
    """Opens a call; `pop_routing` closes it."""
    _stack.set((*_stack.get(), routing))


def pop_routing() -> None:
    """Closes the innermost call."""
    _stack.set(_stack.get()[:-1])


@contextlib.contextmanager
def routing_scope(routing: Routing | None) -> Iterator[None]:
    """Runs the block with a routing."""
    push_routing(routing)
    try:
        yield
    finally:
        pop_routing()


class RoutedCheckpoint:
    """An activation-checkpointing function whose recomputation sees the routing of the first run, in whatever thread."""

    def __init__(self, checkpoint: Callable[..., Any]) -> None:
        self.checkpoint = checkpoint

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As the function that is wrapped."""
        routing = current_routing()
        if routing is None:
            return self.checkpoint(function, *args, **kwargs)
        # The weights go in as arguments: reentrant checkpointing cuts the graph at its arguments and nowhere else.
        weights = [route.weight for route in routing.distinct()]

        def routed(*inner: Any, **inner_kwargs: Any) -> Any:
            with routing_scope(routing.with_weights(inner[: len(weights)])):
                return function(*inner[len(weights) :], **inner_kwargs)

        return self.checkpoint(routed, *weights, *args, **kwargs)
