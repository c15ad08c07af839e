"""Sums over workers that are exact forward and backward.

Every worker computes the loss of its own users. The whole loss is the sum of these, so the backward of a sum over workers
is a sum over workers, and so are the gradients of whatever is replicated (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_SMALL = 2**16
"""Values of a gradient that is sent together with others, at most."""


class Collective:
    """The one-worker case: every sum is already whole. Also the interface of `ProcessGroup`."""

    rank: int = 0
    world_size: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over workers, differentiable; its backward is the sum of the workers' gradients."""
        return tensor

    def maximum(self, tensor: Tensor) -> Tensor:
        """The element-wise maximum over workers; not differentiable."""
        return tensor.detach()

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replaces each parameter's gradient by its sum over workers, in place."""


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class ProcessGroup(Collective):
    """Sums over torch.distributed's default group (gloo on CPUs, NCCL on GPUs)."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def sum(self, tensor: Tensor) -> Tensor:
        """See `Collective.sum`."""
        return _SumOverWorkers.apply(tensor)

    def maximum(self, tensor: Tensor) -> Tensor:
        """See `Collective.maximum`."""
        largest = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """See `Collective.sum_gradients`."""
        small = []
        for parameter in parameters:
            # Every worker must take part, also one whose users touched nothing of this parameter.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.numel() > _SMALL:
                dist.all_reduce(parameter.grad)
            else:
                small.append(parameter.grad)
        if small:
            # In one exchange: what a small one costs is the exchange, not its bytes.
            flat = torch.cat([gradient.flatten() for gradient in small])
            dist.all_reduce(flat)
            for gradient, summed in zip(small, flat.split([gradient.numel() for gradient in small]), strict=True):
                gradient.copy_(summed.view_as(gradient))


def current() -> Collective:
    """The collective of this process: the default group when there is one with several workers."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ProcessGroup()
    return Collective()
