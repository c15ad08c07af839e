"""MoLE over a whole model: one gate for all layers or one for each, and the user as an argument of the call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from penchant.errors import ConfigError
from penchant.reward.mole.config import MoleConfig
from penchant.reward.mole.layer import MoleLayer
from penchant.reward.mole.routing import Gate, Route, RoutedCheckpoint, Routing, current_routing, pop_routing, push_routing


class MoleModel(BaseTuner):
    """A base model with experts. Call it as the base, with the users beside::

        model(**tokens, user_embedding=user_ND, user_index=index_B)

    `user_embedding` are the call's distinct users and `user_index` says whose each sequence is (by default each has its own row).
    `routing=model.base_model.route(user_ND, index_B)` does the same with the routes in hand, for the load-balancing loss.
    """

    prefix = "mole_"
    tuner_layer_cls = MoleLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]
    uses_shared_state = True  # the gate of gate_scope: model

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        assert isinstance(config, MoleConfig)
        if "mole_gate" not in self._modules:
            self.mole_gate = nn.ModuleDict()
            hooks = _CallHooks(self)
            model.register_forward_pre_hook(hooks.enter, with_kwargs=True)
            model.register_forward_hook(hooks.leave, always_call=True)
        if config.gate_scope == "model":
            device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
            self.mole_gate[adapter_name] = Gate(config.user_dim, config.gate_hidden, config.num_experts).to(device)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, MoleConfig)
        if isinstance(target, MoleLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = MoleLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def gates(self) -> list[Gate]:
        """Every gate of the active adapters: one, or one for each adapted layer."""
        layers = [module for module in self.model.modules() if isinstance(module, MoleLayer)]
        tables = [self.mole_gate, *(layer.mole_gate for layer in layers)]
        gates = [table[name] for table in tables for name in self.active_adapters if name in table]
        return [gate for gate in gates if isinstance(gate, Gate)]

    def route(self, user_embedding: Tensor, user_index: Tensor | None = None) -> Routing:
        """The routes of N distinct users (N, D), for sequences that are theirs by `user_index` (B,); default: one each.

        Raises:
            ConfigError: The embeddings' width is not the config's `user_dim`, or an index is out of range.
        """
        if user_index is None:
            user_index = torch.arange(len(user_embedding), device=user_embedding.device)
        elif len(user_index) and not 0 <= int(user_index.min()) <= int(user_index.max()) < len(user_embedding):
            raise ConfigError(
                f"user_index runs from {int(user_index.min())} to {int(user_index.max())}.",
                where="user_index",
                fix=f"There are {len(user_embedding)} user embeddings.",
            )
        routes: dict[tuple[nn.Module, str], Route] = {}
        layers = [module for module in self.model.modules() if isinstance(module, MoleLayer)]
        for adapter in self.active_adapters:
            config = self.peft_config[adapter]
            assert isinstance(config, MoleConfig)
            if user_embedding.dim() != 2 or user_embedding.shape[1] != config.user_dim:
                raise ConfigError(
                    f"The user embeddings are {tuple(user_embedding.shape)}, and user_dim is {config.user_dim}.",
                    where=f"adapter {adapter}",
                    fix="Set user_dim to the width of the graph's embeddings.",
                )
            settings = {
                "noise": config.gate_noise,
                "temperature": config.temperature,
                "top_k": config.top_k,
                "straight_through": config.gate_weight == "straight_through",
            }
            shared = self.mole_gate[adapter](user_embedding, **settings) if config.gate_scope == "model" else None
            for layer in layers:
                if adapter in layer.mole_A:
                    routes[layer, adapter] = shared or layer.mole_gate[adapter](user_embedding, **settings)
        return Routing(routes, user_index)


class _CallHooks:
    """Takes the users out of a call's arguments and opens the scope of its routing, whoever calls the base model.

    PEFT's wrappers call the base past the tuner's own `forward`, so hooks on the base are where every call comes through.
    """

    def __init__(self, tuner: MoleModel) -> None:
        self.tuner = tuner

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before the base's forward."""
        kwargs = dict(kwargs)
        routing, user, index = (kwargs.pop(name, None) for name in ("routing", "user_embedding", "user_index"))
        push_routing(current_routing())  # first of all, so that `leave` has what to close even if the users are refused
        if routing is None and user is not None:
            routing = self.tuner.route(user, index)
        if routing is not None:
            pop_routing()
            push_routing(routing)
        modules: Iterable[Any] = model.modules() if model.training else ()
        for module in modules:
            checkpoint = getattr(module, "_gradient_checkpointing_func", None)
            if checkpoint is not None and not isinstance(checkpoint, RoutedCheckpoint):
                module._gradient_checkpointing_func = RoutedCheckpoint(checkpoint)
        return args, kwargs

    def leave(self, model: nn.Module, args: Any, output: Any) -> None:
        """After the base's forward, also if it failed."""
        pop_routing()
