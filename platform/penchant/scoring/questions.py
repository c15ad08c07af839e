"""Which comparison to ask a user next: the one whose answer is expected to tell most about who they are.

Shapes: N texts of the pool, Q pairs, K prototypes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from penchant.backbone.tokens import Text
from penchant.errors import DataError


class NoQuestions(DataError):
    """The bundle was made without texts to ask about."""


@dataclass(frozen=True)
class QuestionPool:
    """Texts of a few prompts that new users may be asked to choose between."""

    texts: list[Text]
    """N"""
    feature_NF: Tensor
    """Their features of the frozen base."""

    @functools.cached_property
    def pairs(self) -> np.ndarray:
        """Rows of two different texts with the same prompt, every pair once: int64 (Q, 2)."""
        rows: dict[str, dict[str, int]] = {}
        for row, (prompt, response) in enumerate(self.texts):
            rows.setdefault(prompt, {}).setdefault(response, row)
        pairs = [pair for members in rows.values() for pair in itertools.combinations(members.values(), 2)]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class Question:
    """A comparison to be made."""

    prompt: str
    first: str
    second: str
    bits: float
    """What its answer is expected to tell about the user."""


def information_gain(margin_QK: Tensor, log_posterior_K: Tensor) -> Tensor:
    """Mutual information, in bits, between a pair's answer and which prototype the user is like: (Q,); of many users at once
    (..., Q), from posteriors (..., K).

    `H(sum_k p(k) p(first | k)) - sum_k p(k) H(p(first | k))`, `p(first | k) = sigmoid(margin)` (Houlsby et al., 2011, eq. 2).
    """
    posterior_K = torch.softmax(log_posterior_K.double(), dim=-1)
    first_QK = torch.sigmoid(margin_QK.double())
    return (_entropy(posterior_K @ first_QK.T) - posterior_K @ _entropy(first_QK).T).clamp(min=0)


def _entropy(probability: Tensor) -> Tensor:
    """Of a yes or no, in bits."""
    terms = torch.special.entr(probability) + torch.special.entr(1 - probability)
    return terms / np.log(2)


def log_posterior(margin_CK: Tensor) -> Tensor:
    """Of each prototype after a user's comparisons, up to a constant: `sum over them of logsigmoid(margin)`, (K,); of many
    users at once (U, K), from margins (C, U, K).

    The sum, not the mean of onboarding: more answers must sharpen it.
    """
    return functional.logsigmoid(margin_CK).sum(0)


def choose_question(
    pool: QuestionPool, score_NK: Tensor, margin_CK: Tensor, asked: Collection[tuple[str, frozenset[str]]]
) -> Question | None:
    """The pair of the pool whose answer tells most, or None when all have been answered.

    Args:
        score_NK: Scores of the pool's texts under each prototype.
        margin_CK: score(chosen) - score(rejected) of the user's comparisons so far, under each prototype; C may be 0.
        asked: (prompt, both responses) of comparisons that are not to be asked again.
    """
    pairs = pool.pairs
    gain = information_gain(score_NK[pairs[:, 0]] - score_NK[pairs[:, 1]], log_posterior(margin_CK))
    for number in gain.argsort(descending=True).tolist():
        (prompt, first), (_, second) = (pool.texts[row] for row in pairs[number])
        if (prompt, frozenset((first, second))) not in asked:
            return Question(prompt, first, second, float(gain[number]))
    return None
