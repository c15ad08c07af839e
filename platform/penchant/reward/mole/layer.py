"""A linear layer with experts beside it.

Experts are stacked tensors, gathered by the sequences' routes: any mix of users is one batch, with no loop over experts or
users, and an expert that nobody chose gets a zero gradient rather than none (data-parallel training needs that).

Shapes: B sequences, T tokens, E experts, K experts that a user gets, r rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional

from penchant.backbone.linear import linear_features
from penchant.errors import TrainingError
from penchant.reward.mole.config import MoleConfig
from penchant.reward.mole.routing import Gate, Route, current_routing


class MoleLayer(nn.Module, BaseTunerLayer):
    """`y = base(x) + s (B_g A_g x + sum over k of w_k B_k A_k x)`.

    The base is called as it is, so it may be quantised.
    """

    adapter_layer_names = ("mole_A", "mole_B", "mole_shared_A", "mole_shared_B", "mole_gate")
    other_param_names = ("mole_config",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: MoleConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = linear_features(base_layer)
        self.mole_config: dict[str, MoleConfig] = {}
        self.mole_A, self.mole_B = nn.ParameterDict(), nn.ParameterDict()
        self.mole_shared_A, self.mole_shared_B = nn.ParameterDict(), nn.ParameterDict()
        self.mole_gate = nn.ModuleDict()
        self.mole_dropout = nn.ModuleDict()
        self._active_adapter = adapter_name
        self.merged_adapters: list[str] = []
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: MoleConfig, inference_mode: bool = False) -> None:
        """Adds an adapter: A as PEFT initialises LoRA's, B zero, so that a fresh adapter changes nothing."""
        self.mole_config[adapter_name] = config
        down = torch.empty(config.num_experts, config.r, self.in_features)
        for expert in down:
            nn.init.kaiming_uniform_(expert, a=math.sqrt(5))
        self.mole_A[adapter_name] = nn.Parameter(down)
        self.mole_B[adapter_name] = nn.Parameter(torch.zeros(config.num_experts, self.out_features, config.r))
        if config.shared_expert:
            shared = nn.init.kaiming_uniform_(torch.empty(config.r, self.in_features), a=math.sqrt(5))
            self.mole_shared_A[adapter_name] = nn.Parameter(shared)
            self.mole_shared_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, config.r))
        if config.gate_scope == "layer":
            self.mole_gate[adapter_name] = Gate(config.user_dim, config.gate_hidden, config.num_experts)
        self.mole_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output, and that of the experts which the call's routing names.

        Raises:
            TrainingError: There is no routing in this call.
        """
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for adapter in self.active_adapters:
            if adapter in self.mole_A:
                routing = current_routing()
                if routing is None:
                    raise TrainingError(
                        "The experts were called without a user.",
                        where=f"adapter {adapter}",
                        fix="Call the model with user_embedding=... (or routing=...), or inside `disable_adapter()`.",
                    )
                delta = self._experts(x, adapter, routing.routes[self, adapter], routing.user_index)
                result = result + delta.to(result.dtype)
        return result

    def _experts(self, x: Tensor, adapter: str, route: Route, user_index: Tensor) -> Tensor:
        config, down, up = self.mole_config[adapter], self.mole_A[adapter], self.mole_B[adapter]
        sequences, choices = len(user_index), route.expert.shape[1]
        if x.shape[0] % max(1, sequences):
            raise TrainingError(
                f"The layer got {x.shape[0]} rows for {sequences} sequences.", fix="Give one user index for each sequence."
            )
        # Some models flatten tokens before a layer; a sequence's tokens are then still together.
        x_BTI = self.mole_dropout[adapter](x.to(down.dtype)).reshape(sequences, -1, self.in_features)
        expert = route.expert.index_select(0, user_index).flatten()
        down_BRI = down.index_select(0, expert).reshape(sequences, choices * config.r, self.in_features)
        up_BOR = up.index_select(0, expert).reshape(sequences, choices, self.out_features, config.r)
        up_BOR = up_BOR.transpose(1, 2).reshape(sequences, self.out_features, choices * config.r)
        weight_BR = route.weight.index_select(0, user_index).repeat_interleave(config.r, dim=1).to(down.dtype)
        delta = ((x_BTI @ down_BRI.mT) * weight_BR[:, None]) @ up_BOR.mT
        if adapter in self.mole_shared_A:
            delta = delta + functional.linear(functional.linear(x_BTI, self.mole_shared_A[adapter]), self.mole_shared_B[adapter])
        return (delta * (config.alpha / config.r)).reshape(*x.shape[:-1], self.out_features)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: the experts differ by user, and one weight cannot hold them all.

        Raises:
            TrainingError: Always.
        """
        raise TrainingError("Experts cannot be merged into the base: they differ by user.", fix="Keep the adapter beside it.")

    def unmerge(self) -> None:
        """Nothing is ever merged."""

    def __repr__(self) -> str:
        return "mole." + super().__repr__()
