"""Texts under a bundle's models: features, adapters and heads, put together once and kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from penchant.artifacts import Manifest
from penchant.backbone.cache import text_key
from penchant.backbone.features import FeatureExtractor
from penchant.backbone.reading import TextReader
from penchant.backbone.tokens import Text
from penchant.reward.experts import ExpertModel
from penchant.scoring.bundle import BundleParts
from penchant.scoring.experts import SavedModel, build_model, expert_reader
from penchant.scoring.tables import ExpertTable, FrozenTable, ScoreTable
from penchant.scoring.vectors import VectorCache


class TextScorer:
    """Makes tables of texts that can be scored for users.

    Args:
        manifest: What the bundle is.
        parts: What it holds.
        extractor: Reads features of texts.
        remembered_texts: How many texts are kept encoded from table to table (once for each expert), for a service, which is
            asked for the same ones again. 0 for none.
    """

    def __init__(self, manifest: Manifest, parts: BundleParts, extractor: FeatureExtractor, *, remembered_texts: int = 0) -> None:
        self.manifest, self.parts, self.extractor = manifest, parts, extractor
        self.remembered = (
            {name: VectorCache(remembered_texts) for name in ("features", "frozen", "uniform", "personalised")}
            if remembered_texts
            else {}
        )
        self._built: dict[str, ExpertModel] = {}

    def tables(self, texts: Sequence[Text], feature_RF: Tensor | None = None) -> dict[str, ScoreTable]:
        """What scores these texts for users (`personalised`) and without (`uniform`), and, in a bundle with experts, what the
        frozen phase alone says for users (`frozen`).

        Args:
            feature_RF: The texts' features of the frozen base, where they are known.
        """
        parts = self.parts
        if parts.experts is None:
            hidden_RH, uniform_RH = self.hidden(texts, feature_RF)
            return {
                "uniform": FrozenTable(parts.uniform, uniform_RH),
                "personalised": FrozenTable(parts.personalised, hidden_RH),
            }
        tables: dict[str, ScoreTable] = {
            name: self.expert_table(self.experts(name), texts, cache=self.remembered.get(name))
            for name in ("uniform", "personalised")
        }
        if feature_RF is not None:
            tables["frozen"] = FrozenTable.from_features(parts.personalised, feature_RF)
        return tables

    @torch.no_grad()
    def hidden(self, texts: Sequence[Text], feature_RF: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the frozen phase's personalised and uniform heads make of texts: (R, H) each."""

        def both(features: Tensor) -> Tensor:
            return torch.cat([head.hidden(features) for head in (self.parts.personalised, self.parts.uniform)], dim=1)

        if feature_RF is not None:
            hidden = both(feature_RF)
        elif "frozen" in self.remembered:
            keys = [text_key(text) for text in texts]
            hidden = self.remembered["frozen"].look_up(keys, lambda rows: both(self.features([texts[row] for row in rows])))
        else:
            hidden = both(self.features(texts))
        personalised, uniform = hidden.chunk(2, dim=1)
        return personalised, uniform

    def features(self, texts: Sequence[Text]) -> Tensor:
        """Features (R, F) of texts."""

        def extract(rows: Sequence[int]) -> Tensor:
            return torch.from_numpy(self.extractor.features([texts[row] for row in rows]))

        if "features" not in self.remembered:
            return extract(range(len(texts)))
        return self.remembered["features"].look_up([text_key(text) for text in texts], extract)

    def looked_up(self) -> tuple[int, int]:
        """Look-ups of texts so far that were answered from memory, and that were not."""
        caches = self.remembered.values()
        return sum(cache.hits for cache in caches), sum(cache.misses for cache in caches)

    def remembers(self, texts: Sequence[Text]) -> bool:
        """Whether scoring these texts only looks them up: in a bundle without experts, texts that were encoded before."""
        frozen = self.remembered.get("frozen") if self.parts.experts is None else None
        return frozen is not None and all(text_key(text) in frozen for text in texts)

    def remember_features(self, texts: Sequence[Text], feature_RF: Tensor) -> None:
        """Takes in features that are known already, so that the texts need not be read."""
        if "features" in self.remembered:
            self.remembered["features"].look_up([text_key(text) for text in texts], lambda rows: feature_RF[rows])

    def expert_table(self, model: ExpertModel, texts: Sequence[Text], *, cache: VectorCache | None = None) -> ExpertTable:
        """A table of texts for a model over this bundle's base."""
        return ExpertTable(model, self._reader, texts, batch_size=self.parts.backbone.batch_size, cache=cache)

    def build_experts(self, saved: SavedModel, *, user_dim: int, name: str) -> ExpertModel:
        """A saved model over this bundle's base.

        Raises:
            ArtifactError: It was trained on another base, or for embeddings of another width.
        """
        parts = self.parts
        assert parts.experts is not None
        where = f"bundle {self.manifest.name}, {name}"
        whole, head, settings = self.extractor.model, parts.head_settings, parts.experts.settings
        return build_model(saved, whole, parts.backbone, head, settings, user_dim=user_dim, where=where)

    def experts(self, name: str) -> ExpertModel:
        """The bundle's `personalised` or `uniform` base with adapters and head, built on first use."""
        if name not in self._built:
            assert self.parts.experts is not None
            user_dim = self.parts.user_UD.shape[1] if name == "personalised" else 0
            self._built[name] = self.build_experts(self.parts.experts.models[name], user_dim=user_dim, name=name)
        return self._built[name]

    @functools.cached_property
    def _reader(self) -> TextReader:
        """Texts for the experts' base."""
        assert self.parts.experts is not None
        return expert_reader(self.extractor, self.parts.experts.settings)
