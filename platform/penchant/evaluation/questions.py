"""Well-chosen questions against random ones: how many must a new user answer?

Unseen users are asked about pairs of the bundle's question pool, once by `next-comparison`'s rule and once at random. After each
answer they are onboarded from their answers so far, and judged on their test comparisons by the frozen phase's scores, by which
the bundle onboards and asks. All users are asked at once.

Shapes: V interviewed users, N texts of the pool, Q pairs, K prototypes, C judged comparisons, A answers, B resamples,
D user embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from penchant.evaluation.evaluate import Evaluator, dataset_texts
from penchant.evaluation.judgements import Judgements
from penchant.evaluation.metrics import Bootstrap, interval
from penchant.scoring.onboarding import Comparisons, prototype_scores
from penchant.scoring.questions import QuestionPool, information_gain, log_posterior
from penchant.scoring.tables import FrozenTable, ScoreTable

WAYS = ("chosen", "random")
"""How the next pair is found: as `next-comparison` does, or any that has not been asked."""


class Answerer(Protocol):
    """Whoever knows what users would say of any pair. Of real users nobody does."""

    def chooses_first(
        self, user_N: np.ndarray, first_N: np.ndarray, second_N: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        """Whether each user, by row of the data set, chooses the first of two of its responses: bool (N,)."""


class Interview:
    """New users who are asked about the pairs of a bundle's pool, one after another.

    Args:
        evaluator: Its bundle has a pool, whose texts are in its data set.
        answerer: Who answers for them.
        user_V: Rows of the data set; a user may be interviewed several times.
    """

    def __init__(self, evaluator: Evaluator, answerer: Answerer, user_V: np.ndarray) -> None:
        parts = evaluator.model.parts
        assert parts.questions is not None
        self.model, self.answerer, self.user_V = evaluator.model, answerer, user_V
        self.pool: QuestionPool = parts.questions
        self.pairs = self.pool.pairs
        row = {text: number for number, text in enumerate(dataset_texts(evaluator.dataset))}
        self.row_N = np.array([row[text] for text in self.pool.texts], dtype=np.int64)
        self.known_N = evaluator.known_R[self.row_N]
        with torch.no_grad():
            hidden_NH = parts.personalised.hidden(self.pool.feature_NF)
        self.score_NK = prototype_scores(parts.personalised, parts.prototype_KD, hidden_NH)

    def embeddings(self, way: str, answers: int, random: np.random.Generator) -> Iterator[Tensor]:
        """Everybody's embedding (V, D) after each answer, of `answers` or as many as there are pairs."""
        users = np.arange(len(self.user_V))
        open_VQ = torch.ones(len(users), len(self.pairs), dtype=torch.bool)
        margin_QK = self.score_NK[self.pairs[:, 0]] - self.score_NK[self.pairs[:, 1]]
        told_CVK = torch.zeros(0, len(users), margin_QK.shape[1])
        columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for _ in range(min(answers, len(self.pairs))):
            if way == "chosen":
                worth_VQ = information_gain(margin_QK, log_posterior(told_CVK))
            else:
                worth_VQ = torch.from_numpy(random.random(open_VQ.shape))
            asked_V = torch.where(open_VQ, worth_VQ, -1.0).argmax(1).numpy()
            open_VQ[users, asked_V] = False
            first, second = self.pairs[asked_V].T
            is_first = self.answerer.chooses_first(self.user_V, self.row_N[first], self.row_N[second], random)
            chosen, rejected = np.where(is_first, first, second), np.where(is_first, second, first)
            told_CVK = torch.cat([told_CVK, (self.score_NK[chosen] - self.score_NK[rejected])[None]])
            columns.append((users, chosen, rejected))
            so_far = Comparisons(*(np.concatenate(column) for column in zip(*columns, strict=True)))
            yield self.model.embed(so_far, self.pool.feature_NF, self.known_N, num_users=len(users))


def compare_questions(
    evaluator: Evaluator,
    answerer: Answerer,
    *,
    answers: int = 16,
    draws: int = 5,
    limit: int = 400,
    share: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Accuracy on unseen users by how many questions they have answered, chosen and random, and how many each way needs.

    None where the bundle has no pool, where its frozen head sees no user (linear: every question is as good), or where no
    unseen user has a test comparison.

    Args:
        answers: Asked of each user.
        draws: Times that everybody is interviewed anew; the accuracy is that over all of them.
        limit: Users, drawn at random where there are more.
        share: Of the gain over uniform that `answers` random answers bring, the part that has to be reached.
        resamples: Of the bootstrap over users and prompts; the same for everything, so that differences are paired.
        seed: Fixes who is asked, the random pairs, the users' errors and the resamples.
    """
    dataset, parts = evaluator.dataset, evaluator.model.parts
    test = evaluator.test.take(np.flatnonzero(~dataset.seen[evaluator.test.user]))
    if parts.questions is None or not len(parts.questions.pairs) or parts.head_settings.kind == "linear" or not len(test):
        return None
    random = np.random.default_rng(seed)
    users = np.sort(random.permutation(np.unique(test.user))[:limit])
    test = test.take(np.isin(test.user, users))
    interview = Interview(evaluator, answerer, np.tile(users, draws))
    # Everybody is judged once in each draw: comparisons (C,) one draw after another.
    at_C = (np.arange(draws)[:, None] * len(users) + np.searchsorted(users, test.user)).ravel()
    chosen_C, rejected_C, user_C = (np.tile(column, draws) for column in (test.chosen, test.rejected, test.user))
    uniform_C = _margin(FrozenTable.from_features(parts.uniform, evaluator.feature_RF), chosen_C, rejected_C, None)
    table = FrozenTable.from_features(parts.personalised, evaluator.feature_RF)

    def judge(user_VD: Tensor) -> Bootstrap:
        margin_C = _margin(table, chosen_C, rejected_C, user_VD[torch.from_numpy(at_C)])
        judged = Judgements(
            user=user_C,
            prompt=dataset.prompt_of_response[chosen_C],
            seen=np.zeros(len(user_C), dtype=bool),
            controversial=None,
            margins={"uniform": uniform_C, "personalised": margin_C},
        )
        return Bootstrap(judged, resamples=resamples, seed=seed)

    judged = {
        way: [judge(embedding) for embedding in interview.embeddings(way, answers, np.random.default_rng([seed, number]))]
        for number, way in enumerate(WAYS)
    }
    # The point itself goes before its resamples: what is done to one is done to all.
    uniform_B = _drawn(judged["random"][0], "uniform")
    gain = {way: np.stack([_drawn(bootstrap, "personalised") for bootstrap in judged[way]]) - uniform_B for way in WAYS}
    target_B = share * gain["random"][-1]
    points = [
        {"answers": number + 1}
        | {way: _cell(gain[way][number] + uniform_B) for way in WAYS}
        | {"difference": _cell(gain["chosen"][number] - gain["random"][number], widest=(-1.0, 1.0))}
        for number in range(len(gain["random"]))
    ]
    return {
        "users": len(users),
        "draws": draws,
        "pairs": len(interview.pairs),
        "answers": len(points),
        "share": share,
        "seed": seed,
        "uniform": _cell(uniform_B),
        "target": float(target_B[0] + uniform_B[0]),
        "points": points,
        "needed": answers_needed(gain, target_B),
    }


def answers_needed(gain: dict[str, np.ndarray], target_B: np.ndarray) -> dict[str, Any] | None:
    """way -> the fewest answers whose gain reaches the target: value, low, high; and `saved`, random's minus chosen's.

    A number past the last answer stands for "more than were asked". None where there is no gain to be reached.

    Args:
        gain: way -> (A, 1 + B): after each answer, the point itself first and then its resamples.
        target_B: (1 + B,).
    """
    if target_B[0] <= 0 or not (target_B[1:] > 0).any():
        return None
    needed = {way: _first(gain_AB >= target_B) for way, gain_AB in gain.items()}
    needed["saved"] = needed["random"] - needed["chosen"]
    # Resamples in which there is nothing to reach have nothing to say.
    sensible = target_B > 0
    table = {}
    for name, count_B in needed.items():
        low, high = interval(count_B[1:][sensible[1:]])
        table[name] = {"value": int(count_B[0]), "low": int(np.floor(low)), "high": int(np.ceil(high))}
    return table


def _first(reached_AB: np.ndarray) -> np.ndarray:
    """The first answer, counted from 1, after which it is so; one more than there are where it never is: (B,)."""
    return np.where(reached_AB.any(axis=0), reached_AB.argmax(axis=0), len(reached_AB)) + 1


def _drawn(bootstrap: Bootstrap, method: str) -> np.ndarray:
    """Accuracy and its resamples: (1 + B,)."""
    key = (method, "unseen", "all")
    return np.concatenate([[bootstrap.value[key]], bootstrap.resampled[key]])


def _cell(value_B: np.ndarray, *, widest: tuple[float, float] = (0.0, 1.0)) -> dict[str, float]:
    low, high = interval(value_B[1:], widest=widest)
    return {"value": float(value_B[0]), "low": low, "high": high}


def _margin(table: ScoreTable, chosen_C: np.ndarray, rejected_C: np.ndarray, user_CD: Tensor | None) -> np.ndarray:
    return (table.score(chosen_C, user_CD) - table.score(rejected_C, user_CD)).numpy()
