"""Layers with one adapter for each slot, stacked; a row's slices are gathered, so that no loop goes over users.

Shapes: S slots and one more, which changes nothing (for rows of nobody), B rows, T tokens, I in, O out, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from penchant.backbone.grouped.rows import current_rows
from penchant.backbone.linear import linear_features
from penchant.errors import BackboneError


class GroupedLayer(nn.Module):
    """A frozen layer and what each slot changes of it: the parameters in `parts`, each (S + 1, ...).

    Args:
        base_layer: A linear layer, which may be quantised.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = linear_features(base_layer)
        self.parts: dict[str, nn.Parameter] = {}

    def add_part(self, name: str, stacked: Tensor) -> None:
        """Registers a stacked parameter under the name that PEFT saves it by."""
        parameter = nn.Parameter(stacked)
        self.register_parameter(name.replace(".", "_"), parameter)
        self.parts[name] = parameter

    def _rows(self, x: Tensor, slot_B: Tensor) -> Tensor:
        """(B, T, width): some models flatten tokens before a layer; a row's tokens are then still together."""
        if x.shape[0] % max(1, len(slot_B)):
            raise BackboneError(f"The layer got {x.shape[0]} rows for {len(slot_B)} slots.", fix="Give one slot for each row.")
        return x.reshape(len(slot_B), -1, x.shape[-1])


class GroupedLora(GroupedLayer):
    """`y = W x + s B_slot A_slot x`."""

    def __init__(self, base_layer: nn.Module, scale: float, number: int) -> None:
        super().__init__(base_layer)
        self.scale, self.number = scale, number

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output, and that of each row's own adapter."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        rows = current_rows()
        slot_B = rows.slot
        down_BRI = self.parts["lora_A.weight"].index_select(0, slot_B)
        up_BOR = self.parts["lora_B.weight"].index_select(0, slot_B)
        x_BTI = self._rows(x, slot_B).to(down_BRI.dtype)
        if rows.dropout:
            x_BTI = x_BTI * rows.kept(self.number, x_BTI)
        delta = ((x_BTI @ down_BRI.mT) @ up_BOR.mT) * self.scale
        return result + delta.reshape(result.shape).to(result.dtype)


class GroupedScale(GroupedLayer):
    """IA3: `y = l_slot * W x`, or `y = W (l_slot * x)` for a feed-forward layer."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output, with each row's own scale."""
        slot_B = current_rows().slot
        stacked = self.parts["ia3_l"]
        scale_B1W = stacked.index_select(0, slot_B).reshape(len(slot_B), 1, -1)
        if stacked.shape[1] == 1:  # PEFT keeps (1, I) for a feed-forward layer, (O, 1) otherwise
            scaled = (self._rows(x, slot_B) * scale_B1W).to(x.dtype).reshape(x.shape)
            return self.base_layer(scaled, *args, **kwargs)  # type: ignore[no-any-return]
        result: Tensor = self.base_layer(x, *args, **kwargs)
        return (self._rows(result, slot_B) * scale_B1W).to(result.dtype).reshape(result.shape)


class GroupedLinear(GroupedLayer):
    """`y = W_slot x + b_slot`: a label head, of which every user has their own (PEFT's `modules_to_save`)."""

    def forward(self, x: Tensor) -> Tensor:
        """The output of each row's own layer."""
        slot_B = current_rows().slot
        weight_BOI = self.parts["weight"].index_select(0, slot_B)
        x_BTI = self._rows(x, slot_B)
        out_BTO = x_BTI.to(weight_BOI.dtype) @ weight_BOI.mT
        if "bias" in self.parts:
            out_BTO = out_BTO + self.parts["bias"].index_select(0, slot_B)[:, None]
        return out_BTO.reshape(*x.shape[:-1], self.out_features).to(x.dtype)


def grouped_layer(
    base_layer: nn.Module, shapes: dict[str, torch.Size], *, slots: int, dtype: torch.dtype, scale: float, number: int
) -> GroupedLayer:
    """The layer that holds the parts that PEFT would save for one adapter of `base_layer`; all slots start by changing nothing.

    Args:
        shapes: Of one adapter's parts, by the name that PEFT saves each by.
        scale: LoRA's alpha / r.
        number: Of the layer among all that are adapted; dropout differs by it.

    Raises:
        BackboneError: It is not a layer, or not a kind of adapter, that is grouped here.
    """
    kinds: dict[frozenset[str], Any] = {
        frozenset({"lora_A.weight", "lora_B.weight"}): lambda: GroupedLora(base_layer, scale, number),
        frozenset({"ia3_l"}): lambda: GroupedScale(base_layer),
        frozenset({"weight"}): lambda: GroupedLinear(base_layer),
        frozenset({"weight", "bias"}): lambda: GroupedLinear(base_layer),
    }
    make = kinds.get(frozenset(shapes))
    if make is None:
        raise BackboneError(
            f"Adapters with {', '.join(sorted(shapes))} are not grouped.", where="adapter", fix="Use LoRA, IA3 or prompt tuning."
        )
    layer: GroupedLayer = make()
    device = next(base_layer.parameters()).device
    for name, shape in shapes.items():
        one = _neutral(name, shape, base_layer)
        layer.add_part(name, one.to(device, dtype).expand(slots + 1, *shape).clone())
    return layer


def _neutral(name: str, shape: torch.Size, base_layer: nn.Module) -> Tensor:
    """What changes nothing: one adapter's part."""
    if name in ("weight", "bias"):
        return getattr(base_layer, name).detach()  # type: ignore[no-any-return]
    return torch.ones(shape) if name == "ia3_l" else torch.zeros(shape)
