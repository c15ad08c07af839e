"""What LaMP's files hold, as strict models. Fields that no task reads are left aside.

An item is what a user once wrote, watched or rated; its id is unique within the user's history.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_DATE = re.compile(r"\d{4}(-\d{1,2}){0,2}([ T]\d{1,2}:\d{2}(:\d{2})?)?Z?")


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is blank")
    return value


def read_date(value: Any) -> tuple[int, ...]:
    """A year, or an ISO date with or without a time, as numbers from the year downwards.

    Raises:
        ValueError: It is neither.
    """
    text = str(value).strip()
    if isinstance(value, bool) or not _DATE.fullmatch(text):
        raise ValueError("is no date: give a year, or YYYY-MM-DD")
    return tuple(int(number) for number in re.findall(r"\d+", text))


Identity = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_not_blank)]
Answer = Identity
"""A label's name, a number, or a text."""
Text = Annotated[str, AfterValidator(_not_blank)]
Date = Annotated[tuple[int, ...], BeforeValidator(read_date)]
Score = Annotated[Literal["1", "2", "3", "4", "5"], BeforeValidator(_number_as_text)]


class Record(BaseModel):
    """Base of what is read from a file."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class LampItem(Record):
    """One item of a history."""

    id: Identity
    date: Date | None = None


class PaperItem(LampItem):
    """LaMP_1: a paper of the user's. OPPU's files have the reference that it cites, LaMP's own have the abstract."""

    title: Text
    abstract: str | None = None
    citation: Text | None = None


class ArticleItem(LampItem):
    """LaMP_2N: an article of the user's and its category."""

    text: Text
    title: str | None = None
    category: Text


class MovieItem(LampItem):
    """LaMP_2M: a film and the tag that the user gave it."""

    description: Text
    tag: Text


class ReviewItem(LampItem):
    """LaMP_3: a review and its stars."""

    text: Text
    score: Score


class HeadlineItem(LampItem):
    """LaMP_4: an article of the user's and its headline."""

    text: Text
    title: Text


class AbstractItem(LampItem):
    """LaMP_5: a paper of the user's, its abstract and its title."""

    abstract: Text
    title: Text


class TweetItem(LampItem):
    """LaMP_7: a tweet of the user's."""

    text: Text


class QueryRecord(Record):
    """A question in OPPU's files, with its answer."""

    id: Identity
    input: Text
    gold: Answer
    date: Date | None = None


ItemT = TypeVar("ItemT", bound=LampItem)


class UserRecord(Record, Generic[ItemT]):
    """A user in OPPU's files."""

    user_id: Identity
    profile: list[ItemT]
    query: list[QueryRecord]


class QuestionRecord(Record, Generic[ItemT]):
    """A question in LaMP's own files, with the history that may be seen. Without a user id it stands for a user of its own."""

    id: Identity
    input: Text
    profile: list[ItemT]
    user_id: Identity | None = None
    date: Date | None = None


class OutputRecord(Record):
    """The answer to a question, in LaMP's own files."""

    id: Identity
    output: Answer


class OutputsRecord(Record):
    """A file of answers."""

    task: str
    golds: list[OutputRecord] = Field(min_length=1)
