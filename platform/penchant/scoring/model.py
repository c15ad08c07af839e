"""A bundle at work: who is this user, what do they prefer, how would they score this text.

This is what the command line, evaluation and (later) the service and batch jobs call.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from penchant.artifacts import Manifest
from penchant.backbone.activations import ActivationCache, ActivationReader, activation_folder
from penchant.backbone.cache import FeatureCache, default_cache_folder, text_key
from penchant.backbone.features import FeatureExtractor, cache_name
from penchant.backbone.reading import TextReader, lowest_layer
from penchant.backbone.tokens import Text
from penchant.errors import DataError
from penchant.graph.inductive import embed_responses
from penchant.reward.experts import ExpertModel
from penchant.reward.heads import RewardHead
from penchant.scoring.bundle import BundleParts, read_bundle
from penchant.scoring.experts import SavedModel, build_model
from penchant.scoring.onboarding import Comparisons, embed_by_forward, embed_by_neighbours, embed_by_prototypes
from penchant.scoring.tables import ExpertTable, FrozenTable, ScoreTable

Personalisation = Literal["seen", "onboarded", "unknown"]
"""How an answer was personalised; `unknown` means not at all: the uniform score."""


@dataclass(frozen=True)
class TextComparison:
    """One choice of a user: `chosen` over `rejected`, two responses to `prompt`. Any text."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class ResolvedUser:
    """A user's embedding (D,), or None where nothing is known of the user."""

    user: str
    personalisation: Personalisation
    embedding: Tensor | None


@dataclass(frozen=True)
class Scores:
    """Scores of several responses to one prompt, in order."""

    user: str
    personalisation: Personalisation
    bundle: str
    score: list[float]
    uniform: list[float]
    """What the model without users says."""


class PersonalisedRewardModel:
    """A reward model for every user of a bundle.

    Args:
        manifest: What the bundle is.
        parts: What it holds.
        extractor: Reads features of texts; by default with the bundle's backbone and no cache.
    """

    def __init__(self, manifest: Manifest, parts: BundleParts, extractor: FeatureExtractor | None = None) -> None:
        self.manifest, self.parts = manifest, parts
        self.extractor = extractor or FeatureExtractor(parts.backbone)
        self._row = {user: row for row, user in enumerate(parts.user_ids)}
        self._response_row = {key: row for row, key in enumerate(parts.response_keys)}
        self._onboarded: dict[str, Tensor] = {}
        self._built: dict[str, ExpertModel] = {}

    @classmethod
    def load(cls, folder: str | Path, *, cached: bool = False) -> PersonalisedRewardModel:
        """Loads a bundle; with `cached`, features of texts are kept in the feature cache.

        Raises:
            ArtifactError: Not a bundle, of a newer format, or damaged.
        """
        manifest, parts = read_bundle(folder)
        cache = FeatureCache(default_cache_folder() / "features" / cache_name(parts.backbone)) if cached else None
        return cls(manifest, parts, FeatureExtractor(parts.backbone, cache))

    def __repr__(self) -> str:
        parts = self.parts
        return (
            f"PersonalisedRewardModel(bundle={self.manifest.name!r}, users={len(parts.user_ids)}, "
            f"responses={len(parts.response_ids)}, backbone={parts.backbone.name!r}, onboarding={parts.onboarding.kind!r})"
        )

    def resolve(self, user: str) -> ResolvedUser:
        """Who a user id is to this bundle. An unknown one is said to be unknown, not refused."""
        if user in self._onboarded:
            return ResolvedUser(user, "onboarded", self._onboarded[user])
        if user in self._row:
            return ResolvedUser(user, "seen", self.parts.user_UD[self._row[user]])
        return ResolvedUser(user, "unknown", None)

    def remember(self, embeddings: Mapping[str, Tensor]) -> None:
        """Makes onboarded users known to this object, by id."""
        self._onboarded.update(embeddings)

    def score(self, user: str, prompt: str, responses: Sequence[str]) -> Scores:
        """The user's scores of several responses to one prompt; higher is preferred. Only differences mean something.

        Raises:
            DataError: No response, or a blank text.
        """
        if not responses:
            raise DataError("There is no response to score.", where="responses", fix="Give at least one.")
        if not prompt.strip():
            raise DataError("The prompt is blank.", where="prompt", fix="Give a text.")
        for number, response in enumerate(responses):
            if not response.strip():
                raise DataError("A response is blank.", where=f"response {number}", fix="Give a text.")
        resolved = self.resolve(user)
        tables, rows = self.tables([(prompt, response) for response in responses]), np.arange(len(responses))
        uniform = score = tables["uniform"].score(rows, None)
        if resolved.embedding is not None:
            score = tables["personalised"].score(rows, resolved.embedding.expand(len(rows), -1))
        return Scores(user, resolved.personalisation, self.manifest.name, score.tolist(), uniform.tolist())

    def tables(self, texts: Sequence[Text], feature_RF: Tensor | None = None) -> dict[str, ScoreTable]:
        """What scores these texts for users (`personalised`) and without (`uniform`), and, in a bundle with experts, what the
        frozen phase alone says for users (`frozen`).

        Args:
            feature_RF: The texts' features of the frozen base, where they are known.
        """
        parts = self.parts

        def frozen(head: RewardHead) -> ScoreTable:
            features = torch.from_numpy(self.extractor.features(texts)) if feature_RF is None else feature_RF
            return FrozenTable(head, features)

        if parts.experts is None:
            return {"uniform": frozen(parts.uniform), "personalised": frozen(parts.personalised)}
        tables: dict[str, ScoreTable] = {
            name: self.expert_table(self.experts(name), texts) for name in ("uniform", "personalised")
        }
        return tables if feature_RF is None else tables | {"frozen": frozen(parts.personalised)}

    def expert_table(self, model: ExpertModel, texts: Sequence[Text]) -> ExpertTable:
        """A table of texts for a model over this bundle's base."""
        return ExpertTable(model, self._reader, texts, batch_size=self.parts.backbone.batch_size)

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
        parts, extractor = self.parts, self.extractor
        assert parts.experts is not None
        lowest = lowest_layer(extractor.model, parts.experts.settings.layers)
        if lowest == 0:
            return TextReader(extractor.tokenizer, parts.backbone, device=extractor.device)
        cache = None
        if extractor.cache is not None:
            budget = int(parts.experts.settings.activation_gib * 2**30)
            cache = ActivationCache(activation_folder(parts.backbone, lowest), budget_bytes=budget)
        activations = ActivationReader(extractor.model, extractor.tokenizer, parts.backbone, lowest, cache)
        return TextReader(extractor.tokenizer, parts.backbone, activations, device=extractor.device)

    def onboard(self, comparisons: Mapping[str, Sequence[TextComparison]]) -> dict[str, Tensor]:
        """Embeddings (D,) of users from their comparisons of any texts, and remembers them.

        Raises:
            DataError: A user without a comparison, a blank text, or chosen = rejected.
        """
        rows: dict[tuple[str, str], int] = {}
        columns: tuple[list[int], list[int], list[int]] = ([], [], [])
        for number, (user, choices) in enumerate(comparisons.items()):
            if not choices:
                raise DataError("There is no comparison of this user.", where=user, fix="Give at least one.")
            for position, choice in enumerate(choices):
                _check_choice(choice, where=f"user {user}, comparison {position}")
                columns[0].append(number)
                for column, response in zip(columns[1:], (choice.chosen, choice.rejected), strict=True):
                    column.append(rows.setdefault((choice.prompt, response), len(rows)))
        texts = list(rows)
        coded = Comparisons(*(np.array(column, dtype=np.int64) for column in columns))
        features = torch.from_numpy(self.extractor.features(texts))
        known = np.array([self._response_row.get(text_key(text).hex(), -1) for text in texts])
        embedding = self.embed(coded, features, known, num_users=len(comparisons))
        onboarded = dict(zip(comparisons, embedding, strict=True))
        self.remember(onboarded)
        return onboarded

    @torch.no_grad()
    def embed(
        self,
        comparisons: Comparisons,
        feature_NF: Tensor,
        known_N: np.ndarray,
        *,
        num_users: int,
        kind: str | None = None,
        temperature: float | None = None,
    ) -> Tensor:
        """Embeddings (num_users, D) of new users whose comparisons count texts 0..N-1.

        Args:
            known_N: Each text's row among the bundle's responses, or -1 for a fresh one.
            kind: `forward`, `neighbours` or `prototypes`; by default the bundle's. A user whom `neighbours` cannot
                place (nobody chose the same, or a fresh text) is placed by prototypes.
            temperature: Of prototypes; by default the bundle's.
        """
        parts, kind = self.parts, kind or self.parts.onboarding.kind
        if kind == "forward":
            layers, degree = self._layers_of(feature_NF, known_N)
            return embed_by_forward(parts.encoder, layers, degree, comparisons, num_users=num_users)
        by_prototypes = embed_by_prototypes(
            parts.personalised,
            parts.prototype_KD,
            parts.personalised.hidden(feature_NF),
            comparisons,
            num_users=num_users,
            temperature=temperature or parts.onboarding.temperatures[0],
        )
        if kind == "prototypes":
            return by_prototypes
        chosen, rejected = known_N[comparisons.chosen], known_N[comparisons.rejected]
        inside = (chosen >= 0) & (rejected >= 0)
        known = Comparisons(comparisons.user[inside], chosen[inside], rejected[inside])
        by_neighbours, found = embed_by_neighbours(
            parts.neighbours, known, num_users=num_users, temperature=parts.onboarding.neighbour_temperature
        )
        return torch.where(torch.from_numpy(found)[:, None], by_neighbours, by_prototypes)

    def _layers_of(self, feature_NF: Tensor, known_N: np.ndarray) -> tuple[Tensor, Tensor]:
        """Layer embeddings (L + 1, N, D) and degrees (2, N) of texts, in the graph or fresh."""
        parts, known = self.parts, torch.from_numpy(known_N)
        layers = embed_responses(parts.encoder, feature_NF)
        degree = torch.zeros(2, len(known_N))
        inside = known >= 0
        layers[:, inside] = parts.response_layers[:, known[inside]]
        degree[:, inside] = parts.response_degree[:, known[inside]]
        return layers, degree


def _check_choice(choice: TextComparison, *, where: str) -> None:
    for name in ("prompt", "chosen", "rejected"):
        if not getattr(choice, name).strip():
            raise DataError(f"{name} is blank.", where=where, fix="Give a text.")
    if choice.chosen == choice.rejected:
        raise DataError(f"chosen and rejected are the same text {choice.chosen[:60]!r}.", where=where, fix="Drop it.")
