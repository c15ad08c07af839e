"""The task-adapted base that adapters go over, and the PEFT config that they all have."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PromptTuningConfig, TaskType
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from penchant.adapters.config import AdapterSettings, TaskBaseSettings
from penchant.backbone.cut import LAYERS
from penchant.backbone.loading import explained, locate, without_progress_bar
from penchant.backbone.reading import lowest_layer
from penchant.errors import BackboneError, ConfigError

_SAMPLED = 64
"""Values of each tensor that its fingerprint reads, spread over it."""


def load_task_base(settings: TaskBaseSettings, device: torch.device | str = "cpu") -> tuple[Any, Any]:
    """The base with its head, frozen and in eval mode, and its tokenizer.

    Raises:
        BackboneError: It is not there, or is not a model of this kind.
    """
    source = locate(settings.name)
    kind = AutoModelForSequenceClassification if settings.answers == "label" else AutoModelForCausalLM
    labels: dict[str, Any] = {}
    if settings.answers == "label" and settings.labels is not None:
        names = dict(enumerate(settings.labels))
        labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    with explained(settings.name, "base.name"), without_progress_bar():
        tokenizer = AutoTokenizer.from_pretrained(source, revision=settings.revision)
        with torch.random.fork_rng(), warnings.catch_warnings():
            torch.manual_seed(0)  # a head that the task stage has not fitted yet is the same each time
            model = kind.from_pretrained(source, revision=settings.revision, dtype=getattr(torch, settings.precision), **labels)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.requires_grad_(False).eval().to(device), tokenizer


def lowest_adapted(base: Any, settings: AdapterSettings) -> int:
    """The lowest layer that adapters change; 0 where nothing can be cut away.

    Raises:
        BackboneError: The base has no such layers, or is of an architecture that cannot be cut.
    """
    return lowest_layer(base.base_model, settings.layers, where="adapter.layers")


def peft_config(settings: AdapterSettings, base: Any, name: str) -> PeftConfig:
    """PEFT's own config of one user's adapter over a base of this name.

    Raises:
        ConfigError: PEFT has no choice of modules for this architecture, and none is given.
        BackboneError: The base has no such layers, or reads its label where a prompt would hide it.
    """
    task = TaskType.CAUSAL_LM if base.can_generate() else TaskType.SEQ_CLS
    common: dict[str, Any] = {"task_type": task, "base_model_name_or_path": name, "inference_mode": True}
    if settings.kind == "prompt_tuning":
        if task == TaskType.SEQ_CLS and hasattr(base, "score"):
            # transformers' decoders look for the last token in `input_ids`, which vectors in front of the words replace: without
            # them, they read the last position, which is padding in all but the longest row.
            raise BackboneError(
                "Prompt tuning does not go with a decoder's label head.",
                where="adapter.kind",
                fix="Use lora or ia3, an encoder with a label head, or base.answers=text.",
            )
        return PromptTuningConfig(num_virtual_tokens=settings.virtual_tokens, **common)
    first = lowest_adapted(base, settings)
    layers = range(first, base.config.num_hidden_layers)
    if settings.kind == "lora":
        targets = _modules(settings.target_modules, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, base)
        return LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]
            target_modules=targets,
            layers_to_transform=list(layers) if first else None,
            **common,
        )
    targets = _modules(settings.target_modules, TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING, base)
    forward = settings.feedforward_modules
    if forward is None:
        known = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(base.config.model_type, ())
        forward = tuple(name for name in known if name in targets)
    if not first:
        return IA3Config(target_modules=targets, feedforward_modules=list(forward), **common)
    # PEFT's IA3 has no setting for layers; as an expression it can say the same.
    where = re.escape(f"{base.base_model_prefix}.{LAYERS[base.config.model_type]}.")
    numbers = "|".join(map(str, layers))
    expressions = [rf"{where}({numbers})\.(.*\.)?({'|'.join(map(re.escape, names)) or '(?!)'})" for names in (targets, forward)]
    return IA3Config(target_modules=expressions[0], feedforward_modules=expressions[1], **common)


def _modules(given: tuple[str, ...] | None, known: Mapping[str, Sequence[str]], base: Any) -> list[str]:
    names = given or known.get(base.config.model_type)
    if not names:
        raise ConfigError(
            f"It is not known which modules of a {base.config.model_type!r} to adapt.",
            where="adapter.target_modules",
            fix="Name them.",
        )
    return list(names)


def base_fingerprint(base: Any) -> str:
    """A digest of a base's weights: every tensor's name and shape, and values spread over it.

    Reading them all would take minutes for a large base; fine-tuning or merging changes almost every value.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(base.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLED)].cpu().double()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def label_numbers(base: Any) -> dict[str, int]:
    """What a target may be, for a base with a label head: a label's name or its number.

    Raises:
        BackboneError: The base has no label head.
    """
    names = getattr(base.config, "id2label", None)
    if base.can_generate() or not names:
        raise BackboneError("The base has no label head.", where="base.name", fix="Set base.answers to text.")
    by_name = {str(name): int(number) for number, name in names.items()}
    if any(name.lstrip("-").isdigit() for name in by_name):
        return by_name  # a rating "1" is not label number 1
    return {str(number): int(number) for number in names} | by_name
