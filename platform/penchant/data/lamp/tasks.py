"""The seven tasks: their names, the fields of their items, their labels, and where a question says what it is about.

A question's wording is LaMP's own and comes with the data; only the part that changes is read out of it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from penchant.data.lamp import schema
from penchant.errors import ConfigError

CATEGORIES = (
    "food & drink", "sports", "education", "parents", "religion", "travel", "business", "crime", "science & technology",
    "culture & arts", "entertainment", "politics", "women", "style & beauty", "healthy living",
)  # fmt: skip
TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy", "classic", "psychology",
    "fantasy", "romance", "thought-provoking", "social commentary", "violence", "true story",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LampTask:
    """One task, as its files have it."""

    name: str
    """LaMP's name, such as `LaMP_3`."""
    alias: str
    """OPPU's name, such as `product_rating`."""
    title: str
    kind: Literal["classification", "rating", "generation"]
    item: type[schema.LampItem]
    """The fields of a past item."""
    answer: str
    """The field of a past item that holds what a question asks for."""
    question: re.Pattern[str]
    """Finds in a question what it is about; the named groups are the query's fields."""
    labels: tuple[str, ...] = ()
    """What a question can be answered with; empty for generation."""

    def read_question(self, text: str) -> dict[str, str] | None:
        """The fields of a question, or None if it is not worded as this task's questions are."""
        found = self.question.search(text)
        if found is None or not all(value.strip() for value in found.groups()):
            return None
        return {name: value.strip() for name, value in found.groupdict().items()}


def _after(marker: str, field: str) -> re.Pattern[str]:
    return re.compile(rf"{marker}(?P<{field}>.+)", re.DOTALL)


_TASKS = (
    LampTask(
        name="LaMP_1",
        alias="citation",
        title="which of two papers an author cites",
        kind="classification",
        item=schema.PaperItem,
        answer="citation",
        # Titles may hold quotation marks: the title ends with the last one before [1], the first option with `" [2]:`.
        question=re.compile(
            r'title "(?P<title>.+?)"(?=[^"]*\[1\]:).*?\[1\]: "(?P<first>.+?)"\s*\[2\]: "(?P<second>.+)"\s*$', re.DOTALL
        ),
        labels=("[1]", "[2]"),
    ),
    LampTask(
        name="LaMP_2N",
        alias="news_categorize",
        title="the category of a journalist's article",
        kind="classification",
        item=schema.ArticleItem,
        answer="category",
        question=_after(r"\] article: ", "text"),
        labels=CATEGORIES,
    ),
    LampTask(
        name="LaMP_2M",
        alias="movie_tagging",
        title="the tag that a user gives a film",
        kind="classification",
        item=schema.MovieItem,
        answer="tag",
        question=_after(r"\] description: ", "description"),
        labels=TAGS,
    ),
    LampTask(
        name="LaMP_3",
        alias="product_rating",
        title="the stars that a user gives with a review",
        kind="rating",
        item=schema.ReviewItem,
        answer="score",
        question=_after("review: ", "text"),
        labels=("1", "2", "3", "4", "5"),
    ),
    LampTask(
        name="LaMP_4",
        alias="news_headline",
        title="a journalist's headline for an article",
        kind="generation",
        item=schema.HeadlineItem,
        answer="title",
        question=_after("article: ", "text"),
    ),
    LampTask(
        name="LaMP_5",
        alias="scholarly_title",
        title="an author's title for an abstract",
        kind="generation",
        item=schema.AbstractItem,
        answer="title",
        question=_after("paper: ", "abstract"),
    ),
    LampTask(
        name="LaMP_7",
        alias="tweet_paraphrase",
        title="a text as this user would tweet it",
        kind="generation",
        item=schema.TweetItem,
        answer="text",
        question=_after(": ", "original"),
    ),
)
TASKS: dict[str, LampTask] = {task.name: task for task in _TASKS}
"""By LaMP's name."""


def find_task(name: str) -> LampTask:
    """A task by LaMP's name (`LaMP_3`, `LaMP-3`, `3`) or by OPPU's (`product_rating`).

    Raises:
        ConfigError: There is no such task.
    """
    key = name.strip().lower().replace("-", "_")
    known = {spelling: task for task in _TASKS for spelling in _spellings(task)}
    if key in known:
        return known[key]
    close = difflib.get_close_matches(key, known, n=1)
    named = ", ".join(f"{task.name} ({task.alias})" for task in _TASKS)
    hint = f"Did you mean {known[close[0]].name}? " if close else ""
    raise ConfigError(f"There is no LaMP task {name!r}.", where="task", fix=f"{hint}The tasks are {named}.")


def is_named(task: LampTask, name: str) -> bool:
    """Whether a file's `task` means this one. LaMP's own files call both of 2N and 2M `LaMP_2`."""
    key = name.strip().lower().replace("-", "_")
    return key in _spellings(task) or (key == "lamp_2" and task.name.startswith("LaMP_2"))


def _spellings(task: LampTask) -> tuple[str, ...]:
    lower = task.name.lower()
    return lower, lower.removeprefix("lamp_"), task.alias
