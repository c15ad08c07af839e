"""Planted LaMP tasks: users with a known rule each, so that the best reachable score is known, in LaMP's own files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from penchant.artifacts import read_json, replace_folder, write_json
from penchant.config import Settings
from penchant.data.lamp.planted_rules import PLANTERS, Planter, Rule
from penchant.data.lamp.reading import LAMP_PARTS, OPPU_FILES
from penchant.data.lamp.tasks import LampTask, find_task
from penchant.errors import ConfigError, OutputError

TRUTH = "truth.json"
_FIRST_DAY = date(2020, 1, 1)
_REPEATS = 1000
"""So many draws in a row that were there already mean that hardly any text is left."""
_QUESTIONS = {
    "LaMP_1": 'An author has written the paper with the title "{title}". Which one does it cite? [1]: "{first}" [2]: "{second}"',
    "LaMP_2N": "Name the category of the article. categories: [{labels}] article: {text}",
    "LaMP_2M": "Name the tag of the film. tags: [{labels}] description: {description}",
    "LaMP_3": "How many stars, 1 to 5, go with this? review: {text}",
    "LaMP_4": "Write a headline for this article: {text}",
    "LaMP_5": "Write a title for the abstract of this paper: {abstract}",
    "LaMP_7": "Write this as a tweet: {original}",
}


class LampWorld(Settings):
    """Size and nature of a planted task."""

    task: str = "LaMP_3"
    """Which of the seven."""
    layout: Literal["lamp", "oppu"] = "lamp"
    """Whose files are written: LaMP's questions and outputs, or OPPU's two files of users."""
    users: int = Field(20, ge=1)
    """Target users."""
    other_users: int = Field(40, ge=1)
    """Users for the task adapter."""
    items: int = Field(60, ge=1, le=3650)
    """Past items of a user."""
    queries: int = Field(10, ge=1)
    """Questions about a user, all after the items."""
    noise: float = Field(0.1, ge=0, lt=0.5)
    """Probability that an answer goes against the user's rule."""
    seed: int = Field(0, ge=0)
    """Fixes everything."""

    @field_validator("task")
    @classmethod
    def _known(cls, value: str) -> str:
        return find_task(value).name


@dataclass(frozen=True, kw_only=True)
class LampTruth:
    """What is true of a planted task by construction."""

    expected: dict[str, float]
    """Metric -> the expected score of whoever knows each user's rule; empty where only noise 0 has a closed form."""
    best: dict[str, str]
    """Query id -> what the user's rule says."""
    unpersonalised: dict[str, str]
    """Query id -> what most users' rules say: the best answer of whoever has only the text."""
    rules: dict[str, Rule]
    """User id -> the user's rule."""


def save_planted_lamp(world: LampWorld, folder: Path) -> LampTruth:
    """Writes a planted task as a folder, with its truth in `truth.json`; the same world gives the same files.

    Raises:
        OutputError: The folder is there and not empty, or cannot be written.
        ConfigError: A user is to have more items and queries than there are different texts.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError("It is there already, and not empty.", where=str(folder), fix="Choose another folder.")
    task, planter = find_task(world.task), PLANTERS[world.task]
    random = np.random.default_rng(world.seed)
    rules = [planter.draw_rule(random) for _ in range(world.users + world.other_users)]
    names = [f"user-{number:05d}" for number in range(len(rules))]
    best: dict[str, str] = {}
    common: dict[str, str] = {}
    users = []
    for number, (name, rule) in enumerate(zip(names, rules, strict=True)):
        user = _user(name, rule, task, planter, world, random)
        for query in user["query"]:
            subject = query.pop("_subject")
            if number < world.users:
                best[query["id"]] = planter.answer(rule, subject)
                common[query["id"]] = _most_common(task, [planter.answer(other, subject) for other in rules])
        users.append(user)
    parts = {"targets": users[: world.users], "others": users[world.users :]}
    truth = LampTruth(
        expected=_expected(task, world.noise),
        best=best,
        unpersonalised=common,
        rules=dict(zip(names, rules, strict=True)),
    )
    with replace_folder(folder) as draft:
        for part, members in parts.items():
            if world.layout == "oppu":
                write_json(draft / OPPU_FILES[part], members)
            else:
                _write_questions(draft, LAMP_PARTS[part], task, members)
        write_json(draft / TRUTH, vars(truth) | {"world": world.model_dump(mode="json")})
    return truth


def load_lamp_truth(folder: Path) -> LampTruth:
    """What `save_planted_lamp` wrote beside the files.

    Raises:
        ArtifactError: The folder has no truth: it is no planted task.
    """
    held = read_json(folder / TRUTH)
    return LampTruth(**{name: held[name] for name in LampTruth.__dataclass_fields__})


def _user(
    name: str, rule: Rule, task: LampTask, planter: Planter, world: LampWorld, random: np.random.Generator
) -> dict[str, Any]:
    """One user's record in OPPU's layout; each query still holds its subject."""

    def said(subject: dict[str, Any]) -> str:
        if random.random() < world.noise:
            return planter.slip(rule, subject, random)
        return planter.answer(rule, subject)

    # A question about a text of the history could be looked up instead of answered.
    drawn: dict[str, dict[str, Any]] = {}
    repeated = 0
    while len(drawn) < world.items + world.queries:
        subject = planter.draw_subject(random)
        repeated = repeated + 1 if str(subject) in drawn else 0
        if repeated == _REPEATS:
            raise ConfigError(
                f"{task.name} has no {world.items + world.queries:,} different texts: about {len(drawn):,} are all.",
                where="items, queries",
                fix="Ask for fewer.",
            )
        drawn.setdefault(str(subject), subject)
    subjects = list(drawn.values())
    profile = []
    for number, subject in enumerate(subjects[: world.items]):
        fields = planter.item(rule, subject, said(subject))
        day = (_FIRST_DAY + timedelta(days=number)).isoformat()
        profile.append({"id": f"{name}-{number}", **fields, "date": day})
    query = []
    for number, subject in enumerate(subjects[world.items :]):
        text = _QUESTIONS[task.name].format(labels=", ".join(task.labels), **subject)
        query.append({"id": f"{name}-q{number}", "input": text, "gold": said(subject), "_subject": subject})
    return {"user_id": name, "profile": profile, "query": query}


def _most_common(task: LampTask, answers: Sequence[str]) -> str:
    if task.kind == "rating":  # the median errs least
        return sorted(answers, key=int)[len(answers) // 2]
    return Counter(answers).most_common(1)[0][0]


def _expected(task: LampTask, noise: float) -> dict[str, float]:
    if task.kind == "classification":
        return {"accuracy": 1 - noise}
    if task.kind == "rating":  # a slip is one star up or down
        return {"mae": noise, "rmse": noise**0.5}
    return {"rouge_1": 1.0, "rouge_l": 1.0} if noise == 0 else {}


def _write_questions(folder: Path, name: str, task: LampTask, users: Sequence[dict[str, Any]]) -> None:
    """LaMP's own layout: the history is told with each question."""
    questions = [
        {"id": query["id"], "user_id": user["user_id"], "input": query["input"], "profile": user["profile"]}
        for user in users
        for query in user["query"]
    ]
    golds = [{"id": query["id"], "output": query["gold"]} for user in users for query in user["query"]]
    write_json(folder / f"{name}_questions.json", questions)
    write_json(folder / f"{name}_outputs.json", {"task": task.name, "golds": golds})
