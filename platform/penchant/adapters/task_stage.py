"""The task stage: one adapter on everybody else's examples, merged into the base (OPPU, section 3.2, task-adapted base).

What comes out is an ordinary transformers folder: `base.name` of the personal stage.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, set_peft_model_state_dict

from penchant.adapters.bases import load_task_base, lowest_adapted, peft_config
from penchant.adapters.config import PersonalSettings
from penchant.adapters.examples import Example
from penchant.adapters.fitting import AdapterFitter, FittedAdapter
from penchant.adapters.items import ItemReader
from penchant.artifacts import replace_folder
from penchant.backbone.grouped import GroupedModel
from penchant.errors import ConfigError

EVERYBODY = "everybody"
"""Whose adapter the task adapter is, and whose examples it is fitted on."""


def fit_task_base(
    settings: PersonalSettings, examples: Sequence[Example], folder: Path, *, device: torch.device | str = "cpu"
) -> FittedAdapter:
    """Fits one adapter on examples of users who will get none of their own, merges it, and writes the base with its tokenizer.

    Args:
        settings: The base to start from, the adapter and its fitting; early stop holds out the last examples.
        folder: Where the task-adapted base goes.

    Raises:
        ConfigError: The adapter is a prompt, which cannot be merged.
        DataError: There is no example, or one that cannot be fitted on.
        BackboneError: The base is not there or cannot be adapted so.
        TrainingError: The loss is not finite.
        OutputError: The folder cannot be written.
    """
    if settings.adapter.kind == "prompt_tuning":
        raise ConfigError(
            "A prompt cannot be merged into the base.", where="adapter.kind", fix="Use lora or ia3 for the task stage."
        )
    base, tokenizer = load_task_base(settings.base, device)
    lowest, config = lowest_adapted(base, settings.adapter), peft_config(settings.adapter, base, settings.base.name)
    reader = ItemReader(
        base,
        tokenizer,
        max_tokens=settings.base.max_tokens,
        lowest=lowest,
        cache_bytes=int(settings.fitting.cache_gib * 2**30),
    )
    fitter = AdapterFitter(GroupedModel(base, config, slots=1, lowest=lowest), reader, settings.fitting)
    (fitted,) = fitter.fit({EVERYBODY: examples})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers by old names
        adapted: Any = get_peft_model(base, copy.deepcopy(config))
        set_peft_model_state_dict(adapted, fitted.tensors)
        merged = adapted.merge_and_unload()
    # Workers write bases of their own; transformers takes those for copies of one, and would write the first worker's alone.
    merged.should_save_on_this_rank = lambda is_main_process: is_main_process
    with replace_folder(folder) as fresh:
        merged.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    return fitted
