"""AdamW and clipping for stacked adapters: each slot as if it were alone.

A slot that takes no part in a step is not touched: with a zero gradient, AdamW would still decay it and carry its momentum on.

Shapes: S slots and `nobody`, A slots that take part in a step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def clip_each(stacked: Mapping[str, nn.Parameter], slot_A: Tensor, limit: float) -> None:
    """Scales the gradients of each slot so that their norm, over all layers, is at most `limit` (as `clip_grad_norm_` does)."""
    gradients = [parameter.grad for parameter in stacked.values() if parameter.grad is not None]
    square_A = torch.stack([gradient[slot_A].flatten(1).square().sum(1) for gradient in gradients]).sum(0)
    scale_A = (limit / (square_A.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient[slot_A] *= _as_wide(scale_A, gradient)


class SlotAdamW:
    """torch's AdamW (Loshchilov and Hutter, 2019), with a count of steps and a rate for each slot.

    Args:
        stacked: Parameters (S + 1, ...), by name.
        weight_decay: Decoupled decay.
    """

    betas, epsilon = (0.9, 0.999), 1e-8

    def __init__(self, stacked: Mapping[str, nn.Parameter], *, weight_decay: float) -> None:
        self.stacked, self.weight_decay = dict(stacked), weight_decay
        self.first = {name: torch.zeros_like(parameter) for name, parameter in stacked.items()}
        self.second = {name: torch.zeros_like(parameter) for name, parameter in stacked.items()}
        first = next(iter(stacked.values()))
        self.count = torch.zeros(len(first), dtype=torch.float64, device=first.device)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        """Forgets a slot's moments and steps: somebody else sits there now."""
        self.count[slot] = 0
        for moments in (self.first, self.second):
            for moment in moments.values():
                moment[slot] = 0

    @torch.no_grad()
    def step(self, slot_A: Tensor, rate_A: Tensor) -> None:
        """Updates these slots, at these rates, by the gradients that are there."""
        self.count[slot_A] += 1
        first_decay, second_decay = self.betas
        rate_A = rate_A.to(self.count)
        first_A = rate_A / (1 - first_decay ** self.count[slot_A])
        second_A = (1 - second_decay ** self.count[slot_A]).sqrt()
        for name, parameter in self.stacked.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad[slot_A]
            first = self.first[name][slot_A].lerp_(gradient, 1 - first_decay)
            second = self.second[name][slot_A].mul_(second_decay).addcmul_(gradient, gradient, value=1 - second_decay)
            self.first[name][slot_A], self.second[name][slot_A] = first, second
            denominator = (second.sqrt() / _as_wide(second_A, second)).add_(self.epsilon)
            kept = parameter[slot_A] * _as_wide(1 - rate_A * self.weight_decay, gradient)
            parameter[slot_A] = kept - _as_wide(first_A, first) * first / denominator


def rate_share(step: int, steps: int, warm_up: float) -> float:
    """Share of the highest rate at a step, from 0: up in a line over `warm_up` of the steps, then down in a line to 0."""
    rising = round(warm_up * steps)
    if step < rising:
        return step / max(1, rising)
    return max(0.0, (steps - step) / max(1, steps - rising))


def _as_wide(value_A: Tensor, like: Tensor) -> Tensor:
    return value_A.to(like.dtype).reshape(-1, *(1,) * (like.dim() - 1))
