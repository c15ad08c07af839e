"""Puts queries to personal models: whose adapter answers is said for each, so that it may be another user's, or nobody's.

Shapes: Q queries, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from penchant.adapters.answering import PersonalModel
from penchant.adapters.config import AnswerSettings
from penchant.adapters.examples import Example
from penchant.data.lamp import LampTask

NOBODY = ""
"""No user's id: whose answers are the task base's."""
Outputs = dict[str, list[str]]
"""User -> what was answered to the user's queries, in order."""


def ask(
    model: PersonalModel,
    task: LampTask,
    queries: Mapping[str, Sequence[Example]],
    whose: Mapping[str, str],
    settings: AnswerSettings,
) -> Outputs:
    """The answers to every user's queries, each through the adapter of `whose[user]`, or of nobody where that has none.

    Text is written greedily. Of a label head's stars the median is taken, which errs least on average.
    """
    asked = [(user, example.prompt) for user, examples in queries.items() for example in examples]
    outputs: Outputs = {user: [] for user in queries}
    for start in range(0, len(asked), settings.rows_at_once):
        part = asked[start : start + settings.rows_at_once]
        users, prompts = [whose[user] for user, _ in part], [prompt for _, prompt in part]
        if model.reader.labels is None:
            texts = model.write(users, prompts, do_sample=False, max_new_tokens=settings.max_new_tokens).texts
        else:
            answers = model.choose(users, prompts)
            names = model.reader.base.config.id2label
            texts = answers.texts
            if task.kind == "rating" and answers.probability is not None:
                texts = median_stars(answers.probability, [int(names[number]) for number in range(len(names))])
        for (user, _), text in zip(part, texts, strict=True):
            outputs[user].append(text)
    return outputs


def median_stars(probability_QL: Tensor, stars: Sequence[int]) -> list[str]:
    """The median of each row's distribution over stars (L,): (Q,)."""
    order = np.argsort(stars)
    reached = probability_QL.double().numpy()[:, order].cumsum(1) >= 0.5 - 1e-9
    return [str(stars[order[at]]) for at in reached.argmax(1)]


def answering_adapters(row: str, users: Sequence[str], adapted: Sequence[str], seed: int) -> dict[str, dict[str, str]]:
    """Row -> user -> whose adapter answers: a row's own, and one of wrong users where anybody has an adapter of another.

    Args:
        row: Its name.
        users: Who is asked about.
        adapted: Those of them who have an adapter; nobody's answers for the others.
    """
    whose, wrong = {row: {user: user for user in users}}, wrong_users(sorted(adapted), seed)
    if wrong:
        whose[f"{row}, wrong user"] = {user: wrong.get(user, NOBODY) for user in users}
    return whose


def wrong_users(users: Sequence[str], seed: int) -> dict[str, str]:
    """For each user a random other one; everybody is somebody's. Fewer than two users have no other: empty."""
    if len(users) < 2:
        return {}
    shuffled = np.random.default_rng(seed).permutation(len(users))
    names = [users[at] for at in shuffled]
    return dict(zip(names, [*names[1:], names[0]], strict=True))
