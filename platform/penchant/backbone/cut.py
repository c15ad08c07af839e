"""Cutting a base model below a layer: what lies below is frozen, so it is run once for a text and kept.

Shapes: B texts, T tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from penchant.errors import BackboneError

LAYERS: dict[str, str] = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "xlm-roberta": "encoder.layer",
    "electra": "encoder.layer",
    "llama": "layers",
    "mistral": "layers",
    "qwen2": "layers",
    "qwen3": "layers",
    "gemma": "layers",
    "gemma2": "layers",
    "gemma3_text": "layers",
}
"""Architectures that can be cut (`model_type` of their config), and where each keeps its layers."""


Arguments: TypeAlias = tuple[Any, ...]
Keywords: TypeAlias = dict[str, Any]


class _Reached(Exception):
    """Ends a pass: what was wanted of it is there."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


_lower: ContextVar[Tensor | None] = ContextVar("penchant_lower_activations", default=None)


def check_cut(model: nn.Module, layer: int) -> None:
    """Whether a model can be cut below this layer.

    Raises:
        BackboneError: It is of an architecture that is not known here, or has no such layer.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in LAYERS:
        raise BackboneError(
            f"A {kind!r} model cannot be cut between layers.", where="backbone", fix=f"Known: {', '.join(sorted(LAYERS))}."
        )
    count = len(_layers(model))
    if not 1 <= layer < count:
        raise BackboneError(
            f"The model cannot be cut below layer {layer}.",
            where="backbone",
            fix=f"It has layers 0 to {count - 1}; give 1 or more.",
        )


@torch.no_grad()
def lower_activations(model: nn.Module, layer: int, tokens: Mapping[str, Tensor]) -> Tensor:
    """What enters a layer: (B, T, H). The layers from there on are not run.

    Raises:
        BackboneError: The model cannot be cut there.
    """
    check_cut(model, layer)

    def reach(_: nn.Module, args: Arguments, kwargs: Keywords) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    handle = _layers(model)[layer].register_forward_pre_hook(reach, with_kwargs=True)
    try:
        model(**tokens)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise AssertionError("the layer was not run")


def keep_upper(model: nn.Module, layer: int) -> None:
    """Takes the layers below away, in place. The model is then called as before, with `lower=` what entered the layer.

    Masks and positions are the model's own, from the tokens; it embeds them in vain, which costs next to nothing.

    Raises:
        BackboneError: The model cannot be cut there.
    """
    check_cut(model, layer)
    path, _, name = LAYERS[model.config.model_type].rpartition(".")  # type: ignore[union-attr, index]
    kept = nn.ModuleList(_layers(model)[layer:])
    setattr(model.get_submodule(path), name, kept)
    config: Any = model.config
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):  # Gemma's layers that see all, and those that see a window, by position
        config.layer_types = config.layer_types[layer:]
    config.use_cache = False  # a key-value cache counts the layers that were; a text is read once anyhow

    def open_call(_: nn.Module, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
        kwargs = dict(kwargs)
        _lower.set(kwargs.pop("lower", None))
        return args, kwargs

    def enter_first(_: nn.Module, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
        hidden = _lower.get()
        if hidden is None:
            raise BackboneError(
                "A model without its lower layers was called without `lower=`.", fix="Give what entered the layer."
            )
        _lower.set(None)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    model.register_forward_pre_hook(open_call, with_kwargs=True)
    kept[0].register_forward_pre_hook(enter_first, with_kwargs=True)


def _layers(model: nn.Module) -> nn.ModuleList:
    layers = model.get_submodule(LAYERS[model.config.model_type])  # type: ignore[union-attr, index]
    assert isinstance(layers, nn.ModuleList)
    return layers
