"""The experts' part of a bundle: adapters and heads, and the models that they make with the base.

Files::

    reward/experts/personalised/   PEFT's own layout: adapter_config.json, adapter_model.safetensors; and head.safetensors
    reward/experts/uniform/        the same, with plain LoRA
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from penchant.artifacts import read_json, write_text
from penchant.backbone.activations import ActivationCache, ActivationReader, activation_folder
from penchant.backbone.config import BackboneSettings
from penchant.backbone.features import FeatureExtractor
from penchant.backbone.reading import TextReader, lowest_layer, trainable_part
from penchant.errors import ArtifactError
from penchant.reward.config import ExpertSettings, HeadSettings
from penchant.reward.experts import ExpertModel, add_experts, add_lora
from penchant.reward.heads import make_head
from penchant.tensors import read_tensors, write_tensors

_CONFIG, _ADAPTER, _HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"


@dataclass(frozen=True)
class SavedModel:
    """An `ExpertModel` without its base."""

    config: str
    """PEFT's adapter_config.json."""
    adapter: dict[str, Tensor]
    """As PEFT names them."""
    head: dict[str, Tensor]


@dataclass(frozen=True)
class ExpertParts:
    """The experts of a bundle."""

    settings: ExpertSettings
    models: dict[str, SavedModel]
    """`personalised` and `uniform`."""


def save_model(model: ExpertModel, folder: Path, *, base_name: str) -> None:
    """Writes a model's adapter, in PEFT's layout, and its head."""
    config = model.base.peft_config["default"]
    config.base_model_name_or_path = base_name
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    write_tensors(folder / _ADAPTER, get_peft_model_state_dict(model.base))
    write_tensors(folder / _HEAD, model.head.state_dict())


def copy_model(saved: SavedModel, folder: Path) -> None:
    """Writes what `read_model` read."""
    write_text(folder / _CONFIG, saved.config)
    write_tensors(folder / _ADAPTER, saved.adapter)
    write_tensors(folder / _HEAD, saved.head)


def read_model(folder: Path) -> SavedModel:
    """Reads what `save_model` wrote.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    config = json.dumps(read_json(folder / _CONFIG), indent=2)
    return SavedModel(config, read_tensors(folder / _ADAPTER), read_tensors(folder / _HEAD))


def read_experts(folder: Path, settings: ExpertSettings) -> ExpertParts:
    """Reads the experts of a bundle.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    return ExpertParts(settings, {name: read_model(folder / name) for name in ("personalised", "uniform")})


def build_model(
    saved: SavedModel,
    whole: nn.Module,
    backbone: BackboneSettings,
    head: HeadSettings,
    settings: ExpertSettings,
    *,
    user_dim: int,
    where: str,
) -> ExpertModel:
    """The model over a base, in eval mode.

    Args:
        whole: The base; its tensors are shared, not copied.
        user_dim: Width of the user embeddings; 0 for a model without users.
        where: Whose it is, for the error.

    Raises:
        ArtifactError: It was trained on another base, or for embeddings of another width.
    """
    base = trainable_part(whole, settings.layers, dropout=False)
    adapted = add_experts(base, settings, user_dim=user_dim) if user_dim else add_lora(base, settings)
    made = make_head(head, feature_dim=len(saved.head["standardise.mean"]), user_dim=user_dim)
    try:
        result: Any = set_peft_model_state_dict(adapted, saved.adapter)
        made.load_state_dict(saved.head)
    except RuntimeError as error:
        raise _misfit(str(error).splitlines()[-1].strip(), where) from None
    if result.unexpected_keys or any("mole_" in key or "lora_" in key for key in result.missing_keys):
        raise _misfit("its layers have other names", where)
    return ExpertModel(adapted, made, backbone).eval().requires_grad_(False)


def expert_reader(extractor: FeatureExtractor, settings: ExpertSettings) -> TextReader:
    """Makes texts ready for models over the extractor's base, from cached activations where it has a cache."""
    backbone, lowest = extractor.settings, lowest_layer(extractor.model, settings.layers)
    if lowest == 0:
        return TextReader(extractor.tokenizer, backbone, device=extractor.device)
    cache = None
    if extractor.cache is not None:
        cache = ActivationCache(activation_folder(backbone, lowest), budget_bytes=int(settings.activation_gib * 2**30))
    activations = ActivationReader(extractor.model, extractor.tokenizer, backbone, lowest, cache)
    return TextReader(extractor.tokenizer, backbone, activations, device=extractor.device)


def _misfit(reason: str, where: str) -> ArtifactError:
    return ArtifactError(
        f"The experts do not fit this base ({reason[:200]}).",
        where=where,
        fix="They were trained on another base, or for other user embeddings; give those, or train again.",
    )
