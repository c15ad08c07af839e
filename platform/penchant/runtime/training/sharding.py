"""Sharding a frozen base over the workers with FSDP2, while what is trained in it stays whole on each.

The base is where the memory is. Adapters, gates and heads are small: kept whole, their checkpoints need no gathering, and their
gradients are averaged here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from penchant.backbone.cut import LAYERS
from penchant.errors import BackboneError
from penchant.reward.experts import ExpertModel


def shard_base(model: ExpertModel, device: torch.device) -> None:
    """Shards the base's layers, in place: each is gathered when it is run, and let go after.

    Raises:
        BackboneError: The architecture is not one whose layers are known.
    """
    base: nn.Module = model.base.get_base_model()  # type: ignore[assignment, operator]
    kind = getattr(base.config, "model_type", type(base).__name__)
    if kind not in LAYERS:
        raise BackboneError(
            f"The layers of a {kind!r} model are not known.",
            where="experts.sharding",
            fix=f"Use ddp, or one of {', '.join(sorted(LAYERS))}.",
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    trained = set(model.trainable().values())
    for layer in base.get_submodule(LAYERS[kind]).children():
        # Each layer is a root of its own here, and a root is kept gathered after its forward pass unless told otherwise.
        fully_shard(layer, mesh=mesh, ignored_params=trained, reshard_after_forward=True)
    model.most_passes = functools.partial(_most, device=device)


def _most(own: int, device: torch.device) -> int:
    """The largest of the workers' numbers."""
    most = torch.tensor(own, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def average(gradients: Sequence[Tensor]) -> None:
    """Averages gradients over the workers, in one exchange."""
    if dist.get_world_size() == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
