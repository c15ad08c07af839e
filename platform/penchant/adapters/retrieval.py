"""Finds the past items that a prompt shows: by shared words (BM25) or by a sentence encoder.

A prompt sees only what came before it. So a ranking is asked for the items before a position, and what comes after has no
say in it either: BM25's document frequencies and lengths are those of the items before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import bm25s
import numpy as np

from penchant.backbone.cache import FeatureCache, default_cache_folder
from penchant.backbone.config import BackboneSettings
from penchant.backbone.features import FeatureExtractor, cache_name

ENCODER = BackboneSettings(pooling=("mean",), surface=False, prompt_characters=0)
"""The demo's sentence encoder: MiniLM, mean over tokens."""


class Ranking(Protocol):
    """One user's history, ready to be searched."""

    def top(self, query: str, *, before: int, k: int) -> list[int]:
        """Positions of the k items among the first `before` that fit the query best, best first; fewer where there are fewer.

        Of two that fit alike, the later comes first.
        """
        ...


class Retriever(Protocol):
    """Makes histories ready to be searched."""

    def prepare(self, texts: Sequence[str]) -> None:
        """Tells of texts, items or queries, that will be asked for, so that they can be read in one go."""
        ...

    def rank(self, texts: Sequence[str]) -> Ranking:
        """A ranking of a user's items, oldest first."""
        ...


class Bm25Retriever:
    """BM25 as Lucene has it, over words without English stop words."""

    def prepare(self, texts: Sequence[str]) -> None:
        """Nothing: words are counted when they are needed."""

    def rank(self, texts: Sequence[str]) -> Ranking:
        """A ranking of a user's items, oldest first."""
        return _Bm25Ranking(_words(texts))


class DenseRetriever:
    """Cosine of sentence embeddings.

    Args:
        extractor: Any sentence encoder behind penchant's features; by default MiniLM with the machine's feature cache.
    """

    def __init__(self, extractor: FeatureExtractor | None = None) -> None:
        if extractor is None:
            extractor = FeatureExtractor(ENCODER, FeatureCache(default_cache_folder() / cache_name(ENCODER)))
        self.extractor = extractor
        self._vectors: dict[str, np.ndarray] = {}

    def prepare(self, texts: Sequence[str]) -> None:
        """Encodes those texts that are new, in one go."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._vectors))
        if missing:
            features = self.extractor.features([("", text) for text in missing])
            features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
            self._vectors.update(zip(missing, features, strict=True))

    def rank(self, texts: Sequence[str]) -> Ranking:
        """A ranking of a user's items, oldest first."""
        return _DenseRanking(self, self.embed(texts) if texts else np.zeros((0, 0), dtype=np.float32))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of texts: float32 (N, F)."""
        self.prepare(texts)
        return np.stack([self._vectors[text] for text in texts])


class _Bm25Ranking:
    def __init__(self, documents: list[list[str]]) -> None:
        self.documents = documents
        self._index: tuple[int, bm25s.BM25] | None = None

    def top(self, query: str, *, before: int, k: int) -> list[int]:
        if k == 0 or before == 0:
            return []
        words = _words([query])[0]
        index = self._indexed(before)
        known = [word for word in words if word in index.vocab_dict] if index else []
        scores = index.get_scores(known) if known and index else np.zeros(before)
        return _best(scores, k)

    def _indexed(self, before: int) -> bm25s.BM25 | None:
        """An index of the first items; None where they have no word."""
        if self._index is None or self._index[0] != before:
            if not any(self.documents[:before]):
                return None
            index = bm25s.BM25(method="lucene")
            index.index(self.documents[:before], show_progress=False)
            self._index = before, index
        return self._index[1]


class _DenseRanking:
    def __init__(self, retriever: DenseRetriever, item_NF: np.ndarray) -> None:
        self.retriever, self.item_NF = retriever, item_NF

    def top(self, query: str, *, before: int, k: int) -> list[int]:
        if k == 0 or before == 0:
            return []
        return _best(self.item_NF[:before] @ self.retriever.embed([query])[0], k)


def _words(texts: Sequence[str]) -> list[list[str]]:
    return bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)


def _best(scores: np.ndarray, k: int) -> list[int]:
    positions = np.arange(len(scores))
    return np.lexsort((-positions, -scores))[:k].tolist()
