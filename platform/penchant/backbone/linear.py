"""Linear layers, of whatever library."""

from __future__ import annotations

from typing import Any

from transformers.pytorch_utils import Conv1D

from penchant.errors import BackboneError


def linear_features(layer: Any) -> tuple[int, int]:
    """(in, out) of a linear layer, plain, quantised or GPT-2's.

    Raises:
        BackboneError: It is not linear.
    """
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0], layer.weight.shape[1]
    if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
        return int(layer.in_features), int(layer.out_features)
    raise BackboneError(
        f"A {type(layer).__name__} cannot be adapted.",
        where="target_modules",
        fix="Name linear layers, such as query and value.",
    )
