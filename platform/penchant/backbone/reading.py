"""Texts made ready for a base that is trained: tokens, and what enters the lowest trained layer where that is known.

Shapes: N texts, T tokens, H hidden width, S surface features.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penchant.backbone.activations import ActivationReader
from penchant.backbone.config import BackboneSettings
from penchant.backbone.cut import check_cut, keep_upper
from penchant.backbone.surface import surface_features
from penchant.backbone.tokens import Text, tokenise
from penchant.errors import BackboneError


@dataclass(frozen=True)
class TextBatch:
    """N texts, ready for `base(**batch.inputs())`."""

    tokens: dict[str, Tensor]
    """`input_ids`, `attention_mask`: (N, T)"""
    lower: Tensor | None
    """(N, T, H): what enters the lowest layer that the base still has, or None for a whole base."""
    surface: Tensor
    """(N, S): features of the whole response's surface; S is 0 where the settings leave them out."""

    def __len__(self) -> int:
        return len(self.surface)

    def lengths(self) -> Tensor:
        """Tokens of each text: (N,)"""
        return self.tokens["attention_mask"].sum(1)

    def take(self, row: Tensor) -> TextBatch:
        """The texts at these rows, padded to the longest of them."""
        longest = int(self.lengths()[row].max()) if len(row) else 0
        tokens = {name: tensor[row, :longest] for name, tensor in self.tokens.items()}
        return TextBatch(tokens, None if self.lower is None else self.lower[row, :longest], self.surface[row])

    def inputs(self) -> dict[str, Tensor]:
        """The base's arguments."""
        return self.tokens if self.lower is None else self.tokens | {"lower": self.lower}


class TextReader:
    """From texts to batches.

    Args:
        tokenizer: The base's.
        settings: The window of tokens, and whether there are surface features.
        activations: Where what enters the lowest trained layer comes from, or None for a whole base.
        device: Where the batches go.
    """

    def __init__(
        self,
        tokenizer: Any,
        settings: BackboneSettings,
        activations: ActivationReader | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tokenizer, self.settings, self.activations, self.device = tokenizer, settings, activations, device

    def read(self, texts: Sequence[Text]) -> TextBatch:
        """A batch of N texts, in order."""
        surface = torch.zeros(len(texts), 0)
        if self.settings.surface:
            surface = torch.from_numpy(surface_features([response for _, response in texts]))
        surface = surface.to(self.device)
        if self.activations is None:
            tokens = tokenise(self.tokenizer, texts, self.settings).to(self.device)
            return TextBatch(dict(tokens), None, surface)
        tokens, lower = self.activations.batch(texts)
        return TextBatch({name: tensor.to(self.device) for name, tensor in tokens.items()}, lower.to(self.device), surface)


def lowest_layer(model: nn.Module, layers: int | None, *, where: str = "experts.layers") -> int:
    """The lowest of a base's top `layers`; 0 for all of them, where nothing is cut.

    Raises:
        BackboneError: The base is not one that can be cut there.
    """
    if layers is None:
        return 0
    config: Any = model.config
    count = int(getattr(config, "num_hidden_layers", 0))
    lowest = count - layers
    if 0 < count < layers:
        raise BackboneError(
            f"The base has no {layers} layers that could be adapted.",
            where=where,
            fix=f"It has layers 0 to {count - 1}; give at most {count}, or null for all.",
        )
    if lowest != 0:
        check_cut(model, lowest)
    return lowest


def trainable_part(whole: nn.Module, layers: int | None, *, dropout: bool) -> nn.Module:
    """The part of a base that adapters go into, over the same tensors: its top `layers`, without the pooler, which nothing reads.

    Args:
        whole: The base, frozen.
        layers: How many of its top layers; None for all, and nothing is cut.
        dropout: Whether the base's own dropout works while adapters in it are trained.

    Raises:
        BackboneError: The base cannot be cut so.
    """
    lowest = lowest_layer(whole, layers)
    model = share_weights(whole)
    if lowest:
        keep_upper(model, lowest)
    if getattr(model, "pooler", None) is not None:
        setattr(model, "pooler", None)  # noqa: B010 (a module's attribute may become None, which its type does not say)
    for module in model.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    return model


def share_weights(model: nn.Module) -> nn.Module:
    """A copy of the modules over the same frozen tensors: several adapters, one base in memory."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())})
