"""Finds the past items that a prompt shows: by shared words (BM25) or by a sentence encoder.

A prompt sees only what came before it. So a ranking is asked for the items before a position, and what comes after has no
say in it either: BM25's document frequencies and lengths are those of the items before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import bm25s
import numpy as np

from penchant.backbone.cache import FeatureCache
from penchant.backbone.config import BackboneSettings
from penchant.backbone.features import FeatureExtractor, cache_name
from penchant.storage import default_cache_folder

ENCODER = BackboneSettings(pooling=("mean",), surface=False, prompt_characters=0)
"""The demo's sentence encoder: MiniLM, mean over tokens."""
_K1, _B = 1.5, 0.75
"""BM25's usual constants: how soon repeating a word stops to count, and how much long texts are held back."""


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
    """BM25 over any number of first items, exactly.

    A library's index is of a fixed set of items: one would be built for each item of the history, in quadratic time
    (benchmarks/bm25_before.py). Postings in order of time give the counts of any prefix at once.
    """

    def __init__(self, documents: Sequence[Sequence[str]]) -> None:
        length_N = np.array([len(words) for words in documents], dtype=np.float64)
        self.length_N, self.total_N = length_N, length_N.cumsum()
        postings: dict[str, tuple[list[int], list[int]]] = {}
        for position, words in enumerate(documents):
            for word, count in Counter(words).items():
                at, counts = postings.setdefault(word, ([], []))
                at.append(position)
                counts.append(count)
        self.postings = {word: (np.array(at), np.array(counts, dtype=np.float64)) for word, (at, counts) in postings.items()}

    def scores(self, query: str, before: int) -> np.ndarray:
        """How well each of the first `before` items fits: float64 (before,)."""
        score_N = np.zeros(before)
        for word, times in Counter(_words([query])[0]).items():
            at, count = self.postings.get(word, (np.zeros(0, dtype=np.int64), np.zeros(0)))
            found = int(np.searchsorted(at, before))
            if not found:
                continue
            at, count = at[:found], count[:found]
            rarity = np.log1p((before - found + 0.5) / (found + 0.5))
            relative = self.length_N[at] * before / self.total_N[before - 1]
            score_N[at] += times * rarity * count / (count + _K1 * (1 - _B + _B * relative))
        return score_N

    def top(self, query: str, *, before: int, k: int) -> list[int]:
        return _best(self.scores(query, before), k) if k else []


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
