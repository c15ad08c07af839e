"""Feature vectors of (prompt, response) texts under the frozen base model, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penchant import __version__
from penchant.artifacts import fingerprint
from penchant.backbone.cache import FeatureCache, text_key
from penchant.backbone.config import BackboneSettings
from penchant.backbone.loading import load_backbone, locate
from penchant.backbone.pooling import pool
from penchant.backbone.surface import surface_features
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
        """Fails early if the base model is not there.

        Raises:
            BackboneError: It is not there.
        """
        locate(self.settings.name)
        if self.settings.name != "minilm":
            self._load()

    def features(self, texts: Sequence[Text]) -> np.ndarray:
        """Features of each text, in order, not standardised: float32 (N, F)."""
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        keys = [text_key(text) for text in texts]
        if self.cache is None:
            return self._with_surface(texts, self._encode(texts))
        found = self.cache.load()
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        for _ in self._fill(missing):
            pass
        if missing:
            found = self.cache.load()
        return self._with_surface(texts, np.stack([found[key] for key in keys]).astype(np.float32))

    def fill_cache(
        self,
        texts: Sequence[Text],
        *,
        rank: int = 0,
        world_size: int = 1,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Computes this worker's share of the texts that the cache lacks; returns how many it computed."""
        if self.cache is None:
            raise ValueError("fill_cache needs a cache.")
        found = self.cache.load()
        unique = {text_key(text): text for text in texts}
        # Dealt by the key itself: a worker that starts late must not count from what another has already filled.
        missing = [key for key in unique if key not in found and int.from_bytes(key[:8]) % world_size == rank]
        done = 0
        on_progress(0, len(missing))
        for count in self._fill({key: unique[key] for key in missing}):
            done += count
            on_progress(done, len(missing))
        return done

    def _fill(self, missing: dict[bytes, Text]) -> Any:
        # Long texts first: an out-of-memory shows at once, and the padding of a batch is least.
        ordered = sorted(missing, key=lambda key: -sum(map(len, missing[key])))
        for start in range(0, len(ordered), _BLOCK):
            block = ordered[start : start + _BLOCK]
            assert self.cache is not None
            self.cache.add(block, self._encode([missing[key] for key in block]))
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
