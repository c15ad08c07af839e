"""Feature vectors of (prompt, response) texts under the frozen base model, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penchant import __version__
from penchant.artifacts import fingerprint
from penchant.backbone.cache import FeatureCache, text_key
from penchant.backbone.config import BackboneSettings
from penchant.backbone.loading import check_window, load_backbone, locate, read_config
from penchant.backbone.pooling import pool
from penchant.backbone.surface import SURFACE_NAMES, surface_features
from penchant.backbone.tokens import Text, tokenise
from penchant.storage import is_remote

_BLOCK = 512
"""Texts written to the cache at once: what an interruption can lose."""


class FeatureExtractor:
    """Reads features of texts, from the cache where they are there, else with the base model, which is loaded when needed.

    Args:
        settings: The base model, its pooling and its window.
        cache: Where features are kept, or None to compute them each time.
        device: Where the base model runs.
    """

    def __init__(self, settings: BackboneSettings, cache: FeatureCache | None = None, device: torch.device | str = "cpu") -> None:
        self.settings, self.cache, self.device = settings, cache, device
        self._loaded: tuple[Any, Any] | None = None

    @property
    def model(self) -> Any:
        """The frozen base model, loaded on first use."""
        return self._load()[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._load()[1]

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = load_backbone(self.settings, self.device)
        return self._loaded

    def check(self) -> None:
        """Fails early if the base model is not there, or has fewer positions than a text has tokens.

        Raises:
            BackboneError: It is not there.
            ConfigError: `max_tokens` is more than it reads.
        """
        check_window(read_config(self.settings), self.settings.max_tokens, where="backbone.max_tokens")
        if self.settings.name != "minilm":
            self._load()

    def features(self, texts: Sequence[Text]) -> np.ndarray:
        """Features of each text, in order, not standardised: float32 (N, F)."""
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        keys = [text_key(text) for text in texts]
        if self.cache is None:
            return self._with_surface(texts, self._encode(texts))
        found = self.cache.take(set(keys))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        for _ in self._fill(missing):
            pass
        found |= self.cache.take(missing)
        return self._with_surface(texts, np.stack([found[key] for key in keys]).astype(np.float32))

    def fill_cache(
        self,
        batches: Iterable[Sequence[Text]],
        *,
        rank: int = 0,
        world_size: int = 1,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Computes this worker's share of the texts that the cache lacks; returns how many it computed.

        Args:
            batches: The texts, a batch in memory at a time; read twice.
        """
        cache = self._cache()
        found = cache.keys()
        # Dealt by the key itself: a worker that starts late must not count from what another has already filled.
        mine = {
            key
            for batch in batches
            for key in map(text_key, batch)
            if key not in found and int.from_bytes(key[:8]) % world_size == rank
        }
        done, total = 0, len(mine)
        on_progress(0, total)
        for batch in batches if mine else ():
            missing = {key: text for text in batch if (key := text_key(text)) in mine}
            mine -= missing.keys()
            for count in self._fill(missing):
                done += count
                on_progress(done, total)
        return done

    def write_features(self, batches: Iterable[Sequence[Text]], open_rows: Callable[[int], AbstractContextManager]) -> None:
        """Writes the features of texts, in order, as float16 rows; neither texts nor features need fit in memory.

        Args:
            batches: The texts, a batch in memory at a time; read twice or more.
            open_rows: From the number of features F to rows (R, F) to fill.
        """
        cache = self._cache()
        self.fill_cache(batches)
        keys = np.concatenate([np.frombuffer(b"".join(map(text_key, batch)), dtype="<u8").reshape(-1, 2) for batch in batches])
        order = np.argsort(keys[:, 0], kind="stable")
        first = keys[order, 0]
        _, nothing = next(cache.blocks(values=False))
        encoded = nothing.shape[1]
        with open_rows(encoded + (len(SURFACE_NAMES) if self.settings.surface else 0)) as out_RF:
            # A block at a time, to wherever its texts stand.
            for block_keys, values in cache.blocks():
                wanted = np.frombuffer(b"".join(block_keys), dtype="<u8").reshape(-1, 2)
                ranges = zip(*(np.searchsorted(first, wanted[:, 0], side=side) for side in ("left", "right")), strict=True)
                for key, value, (start, stop) in zip(wanted, values, ranges, strict=True):
                    for row in order[start:stop]:
                        if keys[row, 1] == key[1]:
                            out_RF[row, :encoded] = value
            if self.settings.surface:
                row = 0
                for batch in batches:
                    out_RF[row : row + len(batch), encoded:] = surface_features([response for _, response in batch])
                    row += len(batch)

    def _cache(self) -> FeatureCache:
        if self.cache is None:
            raise ValueError("This needs a cache.")
        return self.cache

    def _fill(self, missing: dict[bytes, Text]) -> Any:
        # Long texts first: an out-of-memory shows at once, and the padding of a batch is least.
        ordered = sorted(missing, key=lambda key: -sum(map(len, missing[key])))
        for start in range(0, len(ordered), _BLOCK):
            block = ordered[start : start + _BLOCK]
            self._cache().add(block, self._encode([missing[key] for key in block]))
            yield len(block)

    @torch.inference_mode()
    def _encode(self, texts: Sequence[Text]) -> np.ndarray:
        model, tokenizer = self._load()
        settings = self.settings
        order = sorted(range(len(texts)), key=lambda row: len(texts[row][1]))
        rows: dict[int, np.ndarray] = {}
        for start in range(0, len(order), settings.batch_size):
            batch = order[start : start + settings.batch_size]
            tokens = tokenise(tokenizer, [texts[row] for row in batch], settings).to(self.device)
            hidden = model(**tokens).last_hidden_state
            pooled = pool(hidden, tokens["attention_mask"], settings.pooling).float().cpu().numpy()
            rows |= dict(zip(batch, pooled, strict=True))
        return np.stack([rows[row] for row in range(len(texts))]).astype(np.float16)

    def _with_surface(self, texts: Sequence[Text], encoded: np.ndarray) -> np.ndarray:
        encoded = encoded.astype(np.float32)
        if not self.settings.surface:
            return encoded
        return np.concatenate([encoded, surface_features([response for _, response in texts])], axis=1)


def cache_name(settings: BackboneSettings) -> str:
    """The folder name of the cache for these settings: whatever changes an encoded feature changes the name."""
    decisive = settings.model_dump(mode="json", exclude={"batch_size", "surface"})
    folder = Path(locate(settings.name))
    if is_remote(settings.name):
        decisive["files"] = folder.name  # a copy, named by its content
    elif settings.name != "minilm" and folder.is_dir():
        # A folder's weights may be trained on under the same name.
        decisive["files"] = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    return f"{settings.name.replace('/', '--').strip('.-')[-40:]}-{fingerprint([decisive, __version__])[:12]}"
