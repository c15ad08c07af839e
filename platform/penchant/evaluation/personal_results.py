"""From answers to what `evaluation.json` holds: the task's baselines, every row, and the groups of users of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penchant.adapters.asking import Outputs
from penchant.adapters.config import LampSettings
from penchant.adapters.tasks.baselines import majority, mean_rating
from penchant.data.lamp import LampData
from penchant.errors import DataError
from penchant.evaluation.personal import AGAINST, activity_groups, judge_rows


def personal_results(
    data: LampData,
    answered: Mapping[str, Outputs],
    settings: LampSettings,
    *,
    on: str = "queries",
    study: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The scores of every row, for all users or, in the study of activity, by the length of their histories.

    Args:
        data: As it was asked about.
        answered: Row -> user -> answers, in the order of the user's queries.
        study: `activity` groups the users.
        notes: What is to be known of the answers.

    Raises:
        DataError: There is no query.
    """
    asked = {name: user for name, user in data.targets.items() if user.queries}
    if not asked:
        raise DataError("The target users have no queries.", where="targets", fix="Give queries, or ask about histories.")
    golds = {name: [query.gold for query in user.queries] for name, user in asked.items()}
    rows: dict[str, Outputs] = {}
    for name, baseline in (("commonest answer", majority), ("mean stars", mean_rating)):
        told = {user: baseline(data.task, held) for user, held in asked.items()}
        if all(answers is not None for answers in told.values()):
            rows[name] = {user: answers or [] for user, answers in told.items()}
    rows |= answered
    groups = {"all users": list(asked)}
    if study == "activity":
        groups = activity_groups({name: len(user.items) for name, user in asked.items()}, settings.answers.buckets)
    return {
        "task": data.task.name,
        "title": data.task.title,
        "on": on,
        "study": study,
        "against": AGAINST,
        "groups": {
            name: judge_rows(
                data.task,
                {user: golds[user] for user in users},
                rows,
                resamples=settings.answers.resamples,
                seed=settings.answers.seed,
            )
            for name, users in groups.items()
        },
        "notes": list(notes),
        "settings": settings.model_dump(mode="json"),
    }
