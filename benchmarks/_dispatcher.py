"""MoLE as the authors' code runs it (github.com/ml-postech/CoPL, `lora/layer.py`), written plainly as a peer.

A gate for each adapted layer; a loop over the experts, each of which gets the rows of the batch that chose it; what they give is
put back at its rows; and one expert for all. The users are state on the layers, set before each call, as there. Their code weighs
an expert's output by its gate twice; here it is once, as the paper has it (eq. 6), so that the result can be held against ours.
"""

import torch
from torch import Tensor, nn

from penchant.reward.mole import MoleConfig
from penchant.reward.mole.layer import MoleLayer


class DispatchedLayer(nn.Module):
    """One linear map with a module for each expert, with the weights of one of our layers."""

    def __init__(self, layer: MoleLayer, config: MoleConfig) -> None:
        super().__init__()
        self.base_layer, self.gate, self.scale = layer.base_layer, layer.mole_gate["default"], config.alpha / config.r
        self.experts = nn.ModuleList(map(low_rank, layer.mole_A["default"], layer.mole_B["default"]))
        self.shared = low_rank(layer.mole_shared_A["default"], layer.mole_shared_B["default"])
        self.user_BD: Tensor | None = None
        self.top_k = config.top_k

    def forward(self, x_BTI: Tensor) -> Tensor:
        route = self.gate(self.user_BD, noise=0.0, temperature=1.0, top_k=self.top_k, straight_through=False)
        result = self.base_layer(x_BTI)
        combined = torch.zeros_like(result)
        for number, expert in enumerate(self.experts):
            row, choice = torch.nonzero(route.expert == number, as_tuple=True)
            part = expert(x_BTI[row]) * route.weight[row, choice][:, None, None]
            combined = combined.index_add(0, row, part)
        return result + self.scale * (combined + self.shared(x_BTI))


def low_rank(down: Tensor, up: Tensor) -> nn.Sequential:
    """`up down x`, as two linear maps with copies of these weights."""
    maps = nn.Linear(down.shape[1], len(down), bias=False), nn.Linear(len(down), len(up), bias=False)
    for linear, weight in zip(maps, (down, up), strict=True):
        linear.weight.data = weight.detach().clone()
    return nn.Sequential(*maps)


class DispatchedModel(nn.Module):
    """A model with experts of ours, whose layers are replaced by dispatched ones of the same weights."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.base = experts.base_model.model
        self.base._forward_pre_hooks.clear()  # ours take the users out of the call
        self.base._forward_hooks.clear()
        self.layers = nn.ModuleList()
        for name, module in list(self.base.named_modules()):
            if isinstance(module, MoleLayer):
                parent, _, own = name.rpartition(".")
                setattr(self.base.get_submodule(parent), own, DispatchedLayer(module, experts.peft_config["default"]))
                self.layers.append(self.base.get_submodule(name))

    def forward(self, user_embedding: Tensor, **inputs: Tensor):
        for layer in self.layers:
            layer.user_BD = user_embedding
        return self.base(**inputs)
