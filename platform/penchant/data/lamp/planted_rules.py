"""What the planted users of each task are like: a rule of their own, drawn once, by which they answer everything.

A text shows in its words all that a rule looks at. So whoever knows the rule knows the answer, and whoever has only
the text does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from penchant.data.lamp.tasks import CATEGORIES, TAGS

Random = np.random.Generator
Rule = Any
"""JSON-like: it goes into truth.json."""

_TAG_SCENES = (
    "a crew drifts between dying stars", "it follows the novel page by page", "every dinner ends in slapstick",
    "a chase tears through the harbour", "the last minute turns everything around", "the state counts every breath",
    "the funeral is played for laughs", "it was restored from a silent print", "a therapist doubts her own memory",
    "a dragon guards the well", "two strangers share an umbrella", "it asks what a promise is worth",
    "the factory town goes on strike", "blood runs down the stairs", "it really happened in one winter",
)  # fmt: skip
_CATEGORY_SCENES = (
    "a baker folds butter into dough", "the away team equalised late", "a school changes its timetable",
    "toddlers refuse their naps", "the parish restores its bells", "a night train crosses three borders",
    "the shop doubled its orders", "a burglar left his gloves", "a probe measures the comet", "the museum hangs a mural",
    "the series films its finale", "the council votes on the bridge", "she founded the women's chess club",
    "linen suits return this spring", "walking lowers the pulse",
)  # fmt: skip
_TOPICS = (
    "graph colouring", "sparse retrieval", "protein folding", "auction design", "speech pauses", "soil moisture",
    "robot grasping", "causal discovery", "traffic waves", "glacier flow", "code review", "privacy budgets",
    "tidal energy", "music tagging", "bird migration",
)  # fmt: skip
_METHODS = ("spectral", "Bayesian", "greedy", "contrastive", "modular", "stochastic", "hierarchical", "symbolic")
_ASPECTS = {
    "price": ("It costs less than I feared.", "It costs far too much."),
    "quality": ("It is built to last.", "It fell apart in a week."),
    "service": ("The seller answered within an hour.", "Nobody answered my letters."),
    "looks": ("It looks lovely on the shelf.", "It looks like a mistake."),
    "speed": ("It arrived the next day.", "It took two months to arrive."),
}
_WEIGHTS = (2, 1, 1, 0, 0)
_PLACES = ("Oslo", "Lima", "Kyoto", "Quito", "Cairo", "Riga", "Hobart", "Dakar", "Porto", "Turin", "Tartu", "Leeds")
_THINGS = (
    "kettle", "tent", "piano", "ladder", "lantern", "bicycle", "blender", "jacket", "camera", "radio", "rucksack", "lamp",
    "stove", "violin", "drill", "sofa",
)  # fmt: skip
_NEWS = ("opens a market", "repairs the harbour", "plants a forest", "loses its clock", "paints the trams", "hosts a fair")
_LEADS = {
    "LaMP_4": ("breaking today", "inside story", "what we know", "five reasons why", "meet the people as", "at long last"),
    "LaMP_5": ("on", "towards", "learning from", "rethinking", "a survey of", "how far goes"),
    "LaMP_7": ("omg", "honestly", "so happy that", "guess what", "ugh", "lol"),
}
_CLOSINGS = {
    "LaMP_4": ("say locals", "and nobody noticed", "in pictures", "this week", "our verdict"),
    "LaMP_5": ("revisited", "in practice", "an empirical study", "made simple", "a unified view"),
    "LaMP_7": ("haha", "love it", "so tired now", "can not wait", "best day ever"),
}


class Planter(ABC):
    """How one task's texts and answers are made. A subject is a dict; what starts with `_` is hidden from the files."""

    @abstractmethod
    def draw_rule(self, random: Random) -> Rule:
        """A user's rule."""

    @abstractmethod
    def draw_subject(self, random: Random) -> dict[str, Any]:
        """What one item or question is about."""

    @abstractmethod
    def answer(self, rule: Rule, subject: dict[str, Any]) -> str:
        """What a user of this rule answers."""

    @abstractmethod
    def slip(self, rule: Rule, subject: dict[str, Any], random: Random) -> str:
        """What the user answers against the rule."""

    def item(self, rule: Rule, subject: dict[str, Any], answer: str) -> dict[str, str]:
        """A past item's fields."""
        return {name: value for name, value in subject.items() if not name.startswith("_")}


class _Labels(Planter):
    """LaMP_2N and LaMP_2M: a text shows two of the labels, and the user has a ranking of them all."""

    def __init__(self, field: str, answer: str, labels: Sequence[str], scenes: Sequence[str]) -> None:
        self.field, self.target, self.labels, self.scenes = field, answer, labels, scenes

    def draw_rule(self, random: Random) -> Rule:
        return random.permutation(len(self.labels)).tolist()

    def draw_subject(self, random: Random) -> dict[str, Any]:
        pair = random.choice(len(self.labels), 2, replace=False).tolist()
        place, thing = str(random.choice(_PLACES)), str(random.choice(_THINGS))
        text = f"In {place}, {self.scenes[pair[0]]}, and {self.scenes[pair[1]]}; there is a {thing} in it, too."
        return {self.field: text, "_pair": pair}

    def answer(self, rule: Rule, subject: dict[str, Any]) -> str:
        return self.labels[min(subject["_pair"], key=rule.index)]

    def slip(self, rule: Rule, subject: dict[str, Any], random: Random) -> str:
        return self.labels[max(subject["_pair"], key=rule.index)]

    def item(self, rule: Rule, subject: dict[str, Any], answer: str) -> dict[str, str]:
        return super().item(rule, subject, answer) | {self.target: answer}


class _Citations(Planter):
    """LaMP_1: two papers of two topics, and the user has a ranking of all topics."""

    def draw_rule(self, random: Random) -> Rule:
        return random.permutation(len(_TOPICS)).tolist()

    def draw_subject(self, random: Random) -> dict[str, Any]:
        pair = random.choice(len(_TOPICS), 2, replace=False).tolist()
        methods = [str(method) for method in random.choice(_METHODS, 3)]
        return {
            "title": f"A {methods[2]} view of {random.choice(_THINGS)} design in {random.choice(_PLACES)}",
            "first": f"{methods[0].capitalize()} {_TOPICS[pair[0]]}",
            "second": f"{methods[1].capitalize()} {_TOPICS[pair[1]]}",
            "_pair": pair,
        }

    def answer(self, rule: Rule, subject: dict[str, Any]) -> str:
        return "[1]" if rule.index(subject["_pair"][0]) < rule.index(subject["_pair"][1]) else "[2]"

    def slip(self, rule: Rule, subject: dict[str, Any], random: Random) -> str:
        return "[2]" if self.answer(rule, subject) == "[1]" else "[1]"

    def item(self, rule: Rule, subject: dict[str, Any], answer: str) -> dict[str, str]:
        citation = subject["first" if answer == "[1]" else "second"]
        abstract = f"We study {subject['title'].lower()} and build on {citation.lower()}."
        return {"title": subject["title"], "abstract": abstract, "citation": citation}


class _Ratings(Planter):
    """LaMP_3: a review praises or blames three of five aspects; the user weighs each, and is lenient or not."""

    def draw_rule(self, random: Random) -> Rule:
        weights = dict(zip(_ASPECTS, random.permutation(_WEIGHTS).tolist(), strict=True))
        return {"lenience": int(random.integers(-1, 2)), "weights": weights}

    def draw_subject(self, random: Random) -> dict[str, Any]:
        aspects = random.choice(list(_ASPECTS), 3, replace=False).tolist()
        signs = random.choice([-1, 1], 3).tolist()
        said = " ".join(_ASPECTS[aspect][0 if sign > 0 else 1] for aspect, sign in zip(aspects, signs, strict=True))
        text = f"I bought this {random.choice(_THINGS)} in {random.choice(_PLACES)}. {said}"
        return {"text": text, "_signs": dict(zip(aspects, signs, strict=True))}

    def answer(self, rule: Rule, subject: dict[str, Any]) -> str:
        liking = sum(rule["weights"][aspect] * sign for aspect, sign in subject["_signs"].items())
        return str(min(5, max(1, 3 + rule["lenience"] + liking)))

    def slip(self, rule: Rule, subject: dict[str, Any], random: Random) -> str:
        stars = int(self.answer(rule, subject))
        return str(2 if stars == 1 else 4 if stars == 5 else stars + int(random.choice([-1, 1])))

    def item(self, rule: Rule, subject: dict[str, Any], answer: str) -> dict[str, str]:
        return super().item(rule, subject, answer) | {"score": answer}


class _Styles(Planter):
    """LaMP_4, 5 and 7: the user frames what a text is about with a lead and a closing of their own."""

    def __init__(self, task: str) -> None:
        self.task = task

    def draw_rule(self, random: Random) -> Rule:
        return {"lead": str(random.choice(_LEADS[self.task])), "closing": str(random.choice(_CLOSINGS[self.task]))}

    def draw_subject(self, random: Random) -> dict[str, Any]:
        if self.task == "LaMP_4":
            core = f"{random.choice(_PLACES)} {random.choice(_NEWS)}"
            text = f"{core}. The mayor spoke beside a {random.choice(_THINGS)}. Work began on day {random.integers(2, 99)}."
            return {"text": text, "_core": core}
        if self.task == "LaMP_5":
            core = f"{random.choice(_METHODS)} {random.choice(_TOPICS)}"
            text = (
                f"We apply {core} to a {random.choice(_THINGS)} in {random.choice(_PLACES)}. {random.integers(2, 99)} runs agree."
            )
            return {"abstract": text, "_core": core}
        core = f"I found a {random.choice(_THINGS)} in {random.choice(_PLACES)}"
        return {"original": f"{core} after {random.integers(2, 99)} days of looking.", "_core": core}

    def answer(self, rule: Rule, subject: dict[str, Any]) -> str:
        return f"{rule['lead']} {subject['_core']} {rule['closing']}"

    def slip(self, rule: Rule, subject: dict[str, Any], random: Random) -> str:
        other = rule
        while other == rule:
            other = self.draw_rule(random)
        return self.answer(other, subject)

    def item(self, rule: Rule, subject: dict[str, Any], answer: str) -> dict[str, str]:
        if self.task == "LaMP_7":
            return {"text": answer}
        return super().item(rule, subject, answer) | {"title": answer}


PLANTERS: dict[str, Planter] = {
    "LaMP_1": _Citations(),
    "LaMP_2N": _Labels("text", "category", CATEGORIES, _CATEGORY_SCENES),
    "LaMP_2M": _Labels("description", "tag", TAGS, _TAG_SCENES),
    "LaMP_3": _Ratings(),
} | {task: _Styles(task) for task in _LEADS}
"""By task."""
