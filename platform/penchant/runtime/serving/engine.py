"""What a scoring replica does, without Ray: one bundle, asked for any users.

A replica keeps nothing of a user. What is known of one comes with each question: the store's embedding under this bundle or,
where there is none yet (a new bundle), the user's comparisons.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from penchant.data.choices import TextComparison
from penchant.errors import ArtifactError
from penchant.scoring.model import Asking, Personalisation, PersonalisedRewardModel, ResolvedUser
from penchant.scoring.questions import Question


@dataclass(frozen=True)
class Knowledge:
    """What the service knows of a user when it asks a replica."""

    user: str
    may_be_seen: bool = False
    """Whether the bundle's own users count: those of its tenant who are not forgotten."""
    comparisons: int = 0
    """How many are in the store."""
    embeddings: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Bundle -> the embedding (D,) from all of them."""
    choices: tuple[TextComparison, ...] | None = None
    """The comparisons themselves, where the replica asked for them."""


@dataclass(frozen=True)
class ScoreRequest:
    """Responses to one prompt, to be scored for a user."""

    known: Knowledge
    prompt: str
    responses: tuple[str, ...]


_TEXTS_AT_ONCE = 512


def pieces(requests: Sequence[ScoreRequest]) -> Iterator[list[ScoreRequest]]:
    """Requests in order, in pieces of a few hundred texts or of one request: a pass takes seconds, and not minutes."""
    piece: list[ScoreRequest] = []
    texts = 0
    for request in requests:
        if piece and texts + len(request.responses) > _TEXTS_AT_ONCE:
            yield piece
            piece, texts = [], 0
        piece.append(request)
        texts += len(request.responses)
    if piece:
        yield piece


@dataclass(frozen=True)
class Batch:
    """Requests that were scored together."""

    requests: int
    texts_remembered: int
    """Look-ups of texts that were answered from memory, over all models of the bundle."""
    texts_encoded: int
    """Look-ups that were not."""


@dataclass(frozen=True)
class ScoreAnswer:
    """Scores in order; or, with `needs_choices`, nothing yet: ask again with the user's comparisons."""

    bundle: str
    personalisation: Personalisation = "unknown"
    score: tuple[float, ...] = ()
    uniform: tuple[float, ...] = ()
    fresh: np.ndarray | None = None
    """An embedding (D,) that the store does not have yet."""
    needs_choices: bool = False
    seconds: float = 0.0
    """Time that the model took for the batch of this request."""
    batch: Batch | None = None
    """What was done for the whole batch: with the first of its answers alone, so that it is counted once."""


@dataclass(frozen=True)
class Onboarding:
    """A user's embedding from all comparisons so far."""

    bundle: str
    personalisation: Personalisation
    embedding: np.ndarray
    agreed: float
    """How many of the new comparisons the scores had right before they were known; a tie counts one half."""
    seconds: float = 0.0
    """Time that the model took."""


@dataclass(frozen=True)
class Place:
    """Who a user is to this bundle, and where they stand on the map."""

    bundle: str
    personalisation: Personalisation
    position: tuple[float, float] | None


class ScoringEngine:
    """A bundle at work in a service.

    Args:
        model: The bundle's model.
    """

    def __init__(self, model: PersonalisedRewardModel) -> None:
        self.model = model
        self.bundle = model.manifest.name
        self._checks = 0
        self._centre = model.parts.user_UD.mean(0)
        # The plane of the map: the first two principal components of the seen users' embeddings.
        self._axes_D2 = torch.pca_lowrank(model.parts.user_UD.float(), q=2, niter=4)[2]

    def check(self) -> None:
        """The self-test: scores texts for a user and without one.

        Raises:
            ArtifactError: The scores are not numbers.
        """
        users = [Knowledge(str(user), may_be_seen=True) for user in self.model.parts.user_ids[:1]]
        # Another text each time, so that the base model is asked and not what is remembered.
        self._checks += 1
        texts = (f"A short answer, number {self._checks}.", "Another one, which is a little longer than the first.")
        answers = self.score([ScoreRequest(known, "Is this well?", texts) for known in [*users, Knowledge("")]])
        if not all(np.isfinite(answer.score + answer.uniform).all() for answer in answers):
            raise ArtifactError("The bundle's scores are not numbers.", where=f"bundle {self.bundle}", fix="Make it again.")

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreAnswer]:
        """Answers to any mix of users and texts, in order."""
        started, before = time.perf_counter(), self.model.texts.looked_up()
        users, fresh = self._resolve([request.known for request in requests])
        ready = [number for number, user in enumerate(users) if user is not None]
        askings = [Asking(user, requests[at].prompt, requests[at].responses) for at in ready if (user := users[at]) is not None]
        answers = [ScoreAnswer(self.bundle, needs_choices=True)] * len(requests)
        for number, scores in zip(ready, self.model.score_batch(askings) if askings else [], strict=True):
            answers[number] = ScoreAnswer(
                self.bundle, scores.personalisation, tuple(scores.score), tuple(scores.uniform), fresh.get(number)
            )
        remembered, encoded = (now - then for now, then in zip(self.model.texts.looked_up(), before, strict=True))
        seconds = time.perf_counter() - started
        answers = [replace(answer, seconds=seconds) for answer in answers]
        return [replace(answers[0], batch=Batch(len(requests), remembered, encoded)), *answers[1:]]

    def is_quick(self, requests: Sequence[ScoreRequest]) -> bool:
        """Whether `score` only looks things up: no text is encoded, and nobody is embedded."""
        texts = [(request.prompt, response) for request in requests for response in request.responses]
        return self.model.texts.remembers(texts) and all(self._recall(request.known) is not None for request in requests)

    def _resolve(self, known: Sequence[Knowledge]) -> tuple[list[ResolvedUser | None], dict[int, np.ndarray]]:
        """Each user, or None where the comparisons are needed; and the embeddings that were computed now."""
        users = [self._recall(one) for one in known]
        asked = {str(number): one.choices for number, one in enumerate(known) if users[number] is None and one.choices}
        fresh = {int(number): embedding.numpy() for number, embedding in self.model.embed_choices(asked).items()} if asked else {}
        for number, embedding in fresh.items():
            users[number] = ResolvedUser(known[number].user, "onboarded", torch.from_numpy(embedding))
        return users, fresh

    def _recall(self, known: Knowledge) -> ResolvedUser | None:
        if known.may_be_seen:
            seen = self.model.seen(known.user)
            if seen is not None:
                return seen
        if not known.comparisons:
            return ResolvedUser(known.user, "unknown", None)
        stored = known.embeddings.get(self.bundle)
        return None if stored is None else ResolvedUser(known.user, "onboarded", torch.from_numpy(np.array(stored)))

    def onboard(self, before: Knowledge, choices: Sequence[TextComparison], *, new: int) -> Onboarding:
        """A user's embedding from all comparisons.

        Args:
            before: What was known before the newest `new` of them.
        """
        started = time.perf_counter()
        embedding = self.model.embed_choices({before.user: choices})[before.user]
        earlier, newest = tuple(choices[: len(choices) - new]), choices[len(choices) - new :]
        # Under a new bundle the earlier comparisons are replayed: the new ones are held against what those would have given.
        (user,), _ = self._resolve([replace(before, comparisons=len(earlier), choices=earlier)])
        assert user is not None
        personalisation: Personalisation = "seen" if user.personalisation == "seen" else "onboarded"
        agreed = self._agreed(user, newest)
        return Onboarding(self.bundle, personalisation, embedding.numpy(), agreed, time.perf_counter() - started)

    def _agreed(self, user: ResolvedUser, choices: Sequence[TextComparison]) -> float:
        texts = [(choice.prompt, text) for choice in choices for text in (choice.chosen, choice.rejected)]
        score, _ = self.model.score_texts([user], np.zeros(len(texts), dtype=np.int64), texts)
        margin = score[0::2] - score[1::2]
        return float((margin > 0).sum() + 0.5 * (margin == 0).sum())

    def question(self, choices: Sequence[TextComparison]) -> Question | None:
        """The comparison whose answer would tell most about who made these."""
        return self.model.next_question(choices)

    def place(self, known: Knowledge) -> Place | None:
        """Who a user is, and where; None where the comparisons are needed."""
        users, _ = self._resolve([known])
        user = users[0]
        if user is None:
            return None
        return Place(self.bundle, user.personalisation, None if user.embedding is None else self._position(user.embedding))

    def _position(self, embedding: torch.Tensor) -> tuple[float, float]:
        x, y = ((functional.normalize(embedding, dim=0) - self._centre) @ self._axes_D2).tolist()
        return x, y

    def describe(self, *, points: int = 600) -> dict[str, Any]:
        """What the bundle is, for the playground: some of its users with their places, and texts to rank."""
        parts = self.model.parts
        shown = np.random.default_rng(0).permutation(len(parts.user_ids))[:points]
        plane = ((parts.user_UD[torch.from_numpy(shown)] - self._centre) @ self._axes_D2).tolist()
        prompts: dict[str, list[str]] = {}
        for prompt, response in parts.questions.texts if parts.questions is not None else []:
            prompts.setdefault(prompt, []).append(response)
        return {
            "bundle": self.bundle,
            "backbone": parts.backbone.name,
            "users": len(parts.user_ids),
            "map": [{"user": str(parts.user_ids[row]), "x": x, "y": y} for row, (x, y) in zip(shown, plane, strict=True)],
            "examples": [{"prompt": prompt, "responses": texts} for prompt, texts in prompts.items()],
        }
