"""A bundle at work: who is this user, what do they prefer, how would they score this text.

This is what the command line, evaluation, the service and batch jobs call.

Shapes: U users, N askings (a text for a user), D user embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from penchant.artifacts import Manifest
from penchant.backbone.cache import FeatureCache, text_key
from penchant.backbone.features import FeatureExtractor, cache_name
from penchant.backbone.tokens import Text
from penchant.data.choices import TextComparison, latest_comparisons
from penchant.errors import ArtifactError, DataError
from penchant.graph.inductive import embed_responses
from penchant.scoring.bundle import BundleParts, read_bundle
from penchant.scoring.onboarding import (
    Comparisons,
    embed_by_forward,
    embed_by_neighbours,
    embed_by_prototypes,
    prototype_scores,
)
from penchant.scoring.questions import NoQuestions, Question, choose_question
from penchant.scoring.text_scorer import TextScorer
from penchant.storage import Location, default_cache_folder, local_copy

_USERS_READY = 16_384
"""Seen users kept ready at most: a tensor of one's own costs more than a look-up, or a score of the frozen phase."""

Personalisation = Literal["seen", "onboarded", "unknown"]
"""How an answer was personalised; `unknown` means not at all: the uniform score."""


@dataclass(frozen=True)
class ResolvedUser:
    """A user's embedding (D,), or None where nothing is known of the user."""

    user: str
    personalisation: Personalisation
    embedding: Tensor | None


@dataclass(frozen=True)
class Asking:
    """Responses to a prompt, to be scored for a user."""

    user: ResolvedUser
    prompt: str
    responses: Sequence[str]


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
        remembered_texts: How many texts are kept encoded from call to call.
    """

    def __init__(
        self,
        manifest: Manifest,
        parts: BundleParts,
        extractor: FeatureExtractor | None = None,
        *,
        remembered_texts: int = 0,
    ) -> None:
        self.manifest, self.parts = manifest, parts
        self.extractor = extractor or FeatureExtractor(parts.backbone)
        self.texts = TextScorer(manifest, parts, self.extractor, remembered_texts=remembered_texts)
        self._row = {user: row for row, user in enumerate(parts.user_ids)}
        self._response_row = {key: row for row, key in enumerate(parts.response_keys)}
        self._ready: dict[str, ResolvedUser] = {}
        self._onboarded: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls, folder: Location, *, cached: bool = False, remembered_texts: int = 0, device: torch.device | str = "cpu"
    ) -> PersonalisedRewardModel:
        """Loads a bundle.

        Args:
            folder: Its folder, or a URI of one.
            cached: Whether features of texts are kept in the feature cache, on disk.
            remembered_texts: How many texts are kept encoded in memory from call to call.
            device: Where the base model runs.

        Raises:
            ArtifactError: Not a bundle, of a newer format, or damaged.
            StorageError: The URI cannot be reached.
        """
        manifest, parts = read_bundle(local_copy(folder))
        cache = FeatureCache(default_cache_folder() / "features" / cache_name(parts.backbone)) if cached else None
        model = cls(manifest, parts, FeatureExtractor(parts.backbone, cache, device), remembered_texts=remembered_texts)
        if parts.questions is not None:
            model.texts.remember_features(parts.questions.texts, parts.questions.feature_NF)
        return model

    def __repr__(self) -> str:
        parts = self.parts
        return (
            f"PersonalisedRewardModel(bundle={self.manifest.name!r}, users={len(parts.user_ids)}, "
            f"responses={len(parts.response_ids)}, backbone={parts.backbone.name!r}, onboarding={parts.onboarding.kind!r})"
        )

    def resolve(self, user: str) -> ResolvedUser:
        """Who a user id is to this bundle. An unknown one is said to be unknown, not refused.

        A user of the bundle's own stays what training made of them, whatever was onboarded under their id; as in the service.
        """
        onboarded = self._onboarded.get(user)
        known = ResolvedUser(user, "unknown" if onboarded is None else "onboarded", onboarded)
        return self.seen(user) or known

    def seen(self, user: str) -> ResolvedUser | None:
        """A user of the bundle's own, or None."""
        ready = self._ready.get(user)
        if ready is None and (row := self._row.get(user)) is not None:
            if len(self._ready) >= _USERS_READY:
                self._ready.clear()
            ready = self._ready[user] = ResolvedUser(user, "seen", self.parts.user_UD[row])
        return ready

    def remember(self, embeddings: Mapping[str, Tensor]) -> None:
        """Makes onboarded users known to this object, by id.

        Raises:
            ArtifactError: Their embeddings are not as wide as the bundle's; then none is taken.
        """
        shape = self.parts.user_UD.shape[1:]
        for user, embedding in embeddings.items():
            if embedding.shape != shape:
                what = f"An embedding has shape {tuple(embedding.shape)}; the bundle's have {tuple(shape)}."
                raise ArtifactError(what, where=f"user {user!r}", fix="Onboard the users again under this bundle.")
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
        return self.score_batch([Asking(self.resolve(user), prompt, responses)])[0]

    def score_batch(self, askings: Sequence[Asking]) -> list[Scores]:
        """Scores of any mix of users and texts, in order; each text is encoded once, whoever asks for it."""
        texts = [(asking.prompt, response) for asking in askings for response in asking.responses]
        counts = [len(asking.responses) for asking in askings]
        user_N = np.repeat(np.arange(len(askings)), counts)
        # One list for all, dealt out: a tensor for each asking would cost more than its scores.
        scores = self.score_texts([asking.user for asking in askings], user_N, texts)
        own, shared = (iter(rows.tolist()) for rows in scores)
        return [
            Scores(user.user, user.personalisation, self.manifest.name, list(islice(own, count)), list(islice(shared, count)))
            for user, count in zip((asking.user for asking in askings), counts, strict=True)
        ]

    def score_texts(self, users: Sequence[ResolvedUser], user_N: np.ndarray, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
        """Scores (N,) of texts, each for the user whose number stands in `user_N`, and uniform ones (N,).

        A user of whom nothing is known gets the uniform score.
        """
        tables, rows = self.texts.tables(texts), np.arange(len(texts))
        uniform = tables["uniform"].score(rows, None)
        known_U = np.array([user.embedding is not None for user in users])
        embeddings = [user.embedding for user in users if user.embedding is not None]
        if not embeddings:
            return uniform, uniform
        asked = np.flatnonzero(known_U[user_N])
        user_ND = torch.stack(embeddings)[torch.from_numpy((known_U.cumsum() - 1)[user_N[asked]])]
        score = uniform.clone()
        score[torch.from_numpy(asked)] = tables["personalised"].score(asked, user_ND)
        return score, uniform

    def onboard(self, comparisons: Mapping[str, Sequence[TextComparison]]) -> dict[str, Tensor]:
        """Embeddings (D,) of users from their comparisons of any texts, which this object then knows them by; but for the
        bundle's own users, see `resolve`.

        Raises: see `embed_choices`.
        """
        onboarded = self.embed_choices(comparisons)
        self.remember(onboarded)
        return onboarded

    def embed_choices(self, comparisons: Mapping[str, Sequence[TextComparison]]) -> dict[str, Tensor]:
        """Embeddings (D,) of users from their comparisons of any texts.

        Of a user's comparisons of one pair the last alone counts, as in the service. A text that was in training is known again
        without the blanks around it, too.

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
            for choice in latest_comparisons(choices):
                columns[0].append(number)
                for column, response in zip(columns[1:], (choice.chosen, choice.rejected), strict=True):
                    column.append(rows.setdefault((choice.prompt, response), len(rows)))
        texts = list(rows)
        coded = Comparisons(*(np.array(column, dtype=np.int64) for column in columns))
        features = self.texts.features(texts)
        known = np.array([self._row_of(text) for text in texts])
        embedding = self.embed(coded, features, known, num_users=len(comparisons))
        return dict(zip(comparisons, embedding, strict=True))

    def _row_of(self, text: Text) -> int:
        """A text's row among the bundle's responses, or -1."""
        prompt, response = text
        keys = (text_key(text).hex(), text_key((prompt.strip(), response.strip())).hex())
        return next((self._response_row[key] for key in keys if key in self._response_row), -1)

    def next_question(self, comparisons: Sequence[TextComparison] = ()) -> Question | None:
        """The pair of the bundle's pool whose answer is expected to tell most about a user who has made these comparisons.

        None when all pairs have been answered.

        Raises:
            NoQuestions: The bundle was made without texts to ask about.
        """
        pool = self.parts.questions
        if pool is None:
            raise NoQuestions(
                "The bundle holds no texts to ask about.",
                where=f"bundle {self.manifest.name}",
                fix="Fit with onboarding.question_prompts above 0.",
            )
        texts = [(choice.prompt, text) for choice in comparisons for text in (choice.chosen, choice.rejected)]
        margin_CK = torch.zeros(0, len(self.parts.prototype_KD))
        if texts:
            score_CK = prototype_scores(self.parts.personalised, self.parts.prototype_KD, self.texts.hidden(texts)[0])
            margin_CK = score_CK[0::2] - score_CK[1::2]
        asked = {(choice.prompt, frozenset((choice.chosen, choice.rejected))) for choice in comparisons}
        return choose_question(pool, self._pool_score_NK, margin_CK, asked)

    @functools.cached_property
    def _pool_score_NK(self) -> Tensor:
        pool, parts = self.parts.questions, self.parts
        assert pool is not None
        hidden, _ = self.texts.hidden(pool.texts, pool.feature_NF)
        return prototype_scores(parts.personalised, parts.prototype_KD, hidden)

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
