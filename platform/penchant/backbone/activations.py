"""The lower-activation cache: what enters the lowest adapted layer, computed once for a text and read ever after.

Below that layer the base is frozen, so the activations of a text are the same in every epoch and for every user. They are kept
as float16 rows in memory-mapped blocks that appear whole, within a budget of bytes; a text that no longer fits is computed each
time instead, and `ActivationReader.describe` says so.

Shapes: B texts, T tokens, H hidden width.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from penchant.backbone.cache import text_key
from penchant.backbone.config import BackboneSettings
from penchant.backbone.cut import check_cut, lower_activations
from penchant.backbone.features import cache_name
from penchant.backbone.tokens import Text, tokenise
from penchant.errors import BackboneError
from penchant.storage import default_cache_folder
from penchant.tensors import write_tensors

BLOCK = 256
"""Texts in a block: what an interruption can lose."""


@dataclass(frozen=True)
class _Place:
    block: Path
    start: int
    stop: int


class ActivationCache:
    """Blocks of activations of one base model, window and layer, in one folder.

    Args:
        folder: Its place; another base, window or layer needs another folder.
        budget_bytes: What the blocks may take up together.
    """

    def __init__(self, folder: Path, *, budget_bytes: int) -> None:
        self.folder, self.budget_bytes = folder, budget_bytes
        self.bytes_used = 0
        self._place: dict[bytes, _Place] = {}
        self._values: dict[Path, Any] = {}
        for path in sorted(folder.glob("block-*.safetensors")):
            self._index(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._place

    def __len__(self) -> int:
        return len(self._place)

    def _index(self, path: Path) -> None:
        try:
            block = safe_open(path, framework="pt")
            keys, offsets = block.get_tensor("keys"), block.get_tensor("offsets").tolist()
        except (SafetensorError, OSError):
            return  # it will be computed again
        for number, key in enumerate(keys.numpy()):
            self._place[key.tobytes()] = _Place(path, offsets[number], offsets[number + 1])
        self._values[path] = block.get_slice("values")
        self.bytes_used += path.stat().st_size

    def add(self, keys: Sequence[bytes], activations: Sequence[Tensor]) -> bool:
        """Adds texts' activations, float16 (T, H), as a block; False, and nothing is written, where the budget has no room.

        Raises:
            OutputError: The disk is full or the folder may not be written.
        """
        values = torch.cat(list(activations))
        if self.bytes_used + values.nbytes > self.budget_bytes:
            return False
        lengths = torch.tensor([0, *(len(rows) for rows in activations)])
        key_rows = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(len(keys), -1)
        path = self.folder / f"block-{uuid.uuid4().hex}.safetensors"
        write_tensors(path, {"keys": key_rows, "offsets": lengths.cumsum(0), "values": values})
        self._index(path)
        return True

    def get(self, key: bytes) -> Tensor:
        """A text's activations: float16 (T, H), read from the map."""
        place = self._place[key]
        rows: Tensor = self._values[place.block][place.start : place.stop]
        return rows


def kept_rows(hidden_BTH: Tensor, lengths: Sequence[int], *, layer: int, where: str) -> list[Tensor]:
    """Each text's own activations as they are kept and read: float16 (T, H) in main memory, without padding.

    Args:
        lengths: Tokens of each text, which stand first in its row.
        where: The setting that says which layer it is.

    Raises:
        BackboneError: One is beyond float16.
    """
    rows = [row[:length].half().cpu() for row, length in zip(hidden_BTH, lengths, strict=True)]
    if not all(bool(row.isfinite().all()) for row in rows):
        raise BackboneError(
            f"What enters layer {layer} of this base is beyond float16, in which it is kept.",
            where=where,
            fix="Let other layers be adapted, or take another base.",
        )
    return rows


def activation_folder(settings: BackboneSettings, layer: int) -> Path:
    """Where the activations that enter a layer are kept, in the cache folder."""
    return default_cache_folder() / "activations" / f"{cache_name(settings)}-layer-{layer}"


class ActivationReader:
    """Batches of tokens and of what enters a layer, from the cache where it is there, else from the base.

    Args:
        model: The whole frozen base, in eval mode.
        tokenizer: Its tokenizer.
        settings: The window of tokens.
        layer: The lowest layer that is not frozen.
        cache: None to compute everything each time.

    Raises:
        BackboneError: The base cannot be cut there.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: BackboneSettings, layer: int, cache: ActivationCache | None) -> None:
        check_cut(model, layer)
        self.model, self.tokenizer, self.settings, self.layer, self.cache = model, tokenizer, settings, layer, cache
        self.recomputed = 0
        """Texts computed for a batch because the cache lacks them."""

    def fill(self, texts: Sequence[Text], *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Computes and keeps what the cache lacks, as far as its budget goes; returns how many texts it then lacks."""
        if self.cache is None:
            return len(texts)
        missing = {key: text for text in texts if (key := text_key(text)) not in self.cache}
        ordered = sorted(missing, key=lambda key: sum(map(len, missing[key])))
        for start in range(0, len(ordered), BLOCK):
            block = ordered[start : start + BLOCK]
            if not self.cache.add(block, self._compute([missing[key] for key in block])):
                return len(ordered) - start
            on_progress(start + len(block), len(ordered))
        return 0

    def _compute(self, texts: Sequence[Text]) -> list[Tensor]:
        rows = []
        for start in range(0, len(texts), self.settings.batch_size):
            tokens = tokenise(self.tokenizer, texts[start : start + self.settings.batch_size], self.settings).to(
                self.model.device
            )
            hidden = lower_activations(self.model, self.layer, tokens)
            lengths = tokens["attention_mask"].sum(1).tolist()
            rows += kept_rows(hidden, lengths, layer=self.layer, where="experts.layers")
        return rows

    def batch(self, texts: Sequence[Text]) -> tuple[dict[str, Tensor], Tensor]:
        """Tokens of the texts, and what enters the layer: (B, T, H) in the base's precision, zero where there is padding."""
        tokens = dict(tokenise(self.tokenizer, texts, self.settings).to(self.model.device))
        keys = [text_key(text) for text in texts]
        known = {} if self.cache is None else {key: self.cache.get(key) for key in keys if key in self.cache}
        absent = [text for text, key in zip(texts, keys, strict=True) if key not in known]
        self.recomputed += len(absent)
        computed = iter(self._compute(absent)) if absent else iter(())
        rows = [known[key] if key in known else next(computed) for key in keys]
        lower = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return tokens, lower.to(self.model.device, self.model.dtype)

    def describe(self, texts: Sequence[Text]) -> str:
        """Whether these texts fit, in words."""
        if self.cache is None:
            return f"activations below layer {self.layer}: computed each time"
        lacking = sum(text_key(text) not in self.cache for text in texts)
        budget, used = self.cache.budget_bytes / 2**30, self.cache.bytes_used / 2**30
        words = f"activations below layer {self.layer}: {used:.2f} of {budget:.2f} GiB"
        return words if not lacking else f"{words}; {lacking:,} of {len(texts):,} texts do not fit and are computed each time"
