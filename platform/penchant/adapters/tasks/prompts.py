"""The prompts of the seven tasks: one table, from which questions, training items and shown history are all written.

A past item is put in the very words of a question wherever it has what a question has, so that a personal adapter is
fitted on what it will be asked. Where it has not (LaMP_1, LaMP_7), it gets an instruction of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penchant.data.lamp import TASKS, Item, LampTask, Query
from penchant.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TaskPrompts:
    """How one task is put into words."""

    task: LampTask
    instruction: str
    """What is to be done, at the head of a question."""
    subject: tuple[str, ...]
    """Fields of a query that are shown, in order."""
    target_word: str
    """The word that the answer comes after."""
    words: Mapping[str, str]
    """Field of a query or an item -> the word that stands before it."""
    item_instruction: str = ""
    """The same for a past item; by default the question's."""

    def question(self, query: Query, *, max_words: int) -> str:
        """A query as the model is asked it, up to where the answer begins."""
        return self._ask(self.instruction, query.fields, self.subject, max_words)

    def item_subject(self, item: Item) -> tuple[str, ...]:
        """The fields of a past item that say what it was about; empty where it is the answer alone (LaMP_7)."""
        target = self.item_target(item)
        usable = ("abstract",) if self.task.name == "LaMP_1" and target == "title" else self.subject
        return tuple(name for name in usable if name != target and item.fields.get(name, "").strip())

    def item_target(self, item: Item) -> str:
        """The field of a past item that a personal adapter learns to write."""
        # LaMP's own files do not say what a paper cites: there, an author's words are learnt from titles.
        return self.task.answer if self.task.answer in item.fields else "title"

    def item_question(self, item: Item, *, max_words: int) -> str:
        """A past item as a question, up to where the user's own words begin."""
        target = self.item_target(item)
        instruction = self.item_instruction or self.instruction
        if target != self.task.answer:
            instruction = f"Write what this person would put as the {self.words[target]}."
        return self._ask(instruction, item.fields, self.item_subject(item), max_words, self.words[target])

    def shown(self, item: Item, *, fields: Sequence[str] | None, max_words: int) -> str:
        """A past item as part of a prompt, on one line."""
        names = tuple(fields) if fields is not None else (*self.item_subject(item), self.item_target(item))
        told = [f"{self.words[name]}: {cut(item.fields[name], max_words)}" for name in names if item.fields.get(name, "").strip()]
        return " ".join(told)

    def check_fields(self, fields: Sequence[str] | None) -> None:
        """Refuses a history format with a field that items of this task do not have.

        Raises:
            ConfigError: There is such a field.
        """
        known = [name for name in self.task.item.model_fields if name in self.words]
        for name in fields or ():
            if name not in known:
                raise ConfigError(
                    f"Items of {self.task.name} have no field {name!r}.",
                    where="history_fields",
                    fix=f"They have: {', '.join(known)}.",
                )

    def _ask(
        self, instruction: str, fields: Mapping[str, str], names: Sequence[str], max_words: int, target: str | None = None
    ) -> str:
        lines = [f"{self.words[name]}: {cut(fields[name], max_words)}" for name in names]
        return "\n".join([instruction, *lines, f"{target or self.target_word}:"])


def cut(text: str, max_words: int) -> str:
    """The first words of a text, with single spaces."""
    return " ".join(text.split()[:max_words])


_PROMPTS = (
    TaskPrompts(
        task=TASKS["LaMP_1"],
        instruction="Which of the two papers does the author of this paper cite? Answer [1] or [2].",
        subject=("title", "first", "second"),
        target_word="cites",
        words={"title": "paper", "first": "[1]", "second": "[2]", "abstract": "abstract", "citation": "cites"},
        item_instruction="Name a paper that the author of this paper cites.",
    ),
    TaskPrompts(
        task=TASKS["LaMP_2N"],
        instruction=f"Which of these categories would the author put this article in? {', '.join(TASKS['LaMP_2N'].labels)}.",
        subject=("text",),
        target_word="category",
        words={"text": "article", "title": "headline", "category": "category"},
    ),
    TaskPrompts(
        task=TASKS["LaMP_2M"],
        instruction=f"Which of these tags would the viewer give this film? {', '.join(TASKS['LaMP_2M'].labels)}.",
        subject=("description",),
        target_word="tag",
        words={"description": "film", "tag": "tag"},
    ),
    TaskPrompts(
        task=TASKS["LaMP_3"],
        instruction="How many stars, from 1 to 5, did the writer of this review give?",
        subject=("text",),
        target_word="stars",
        words={"text": "review", "score": "stars"},
    ),
    TaskPrompts(
        task=TASKS["LaMP_4"],
        instruction="Write this journalist's headline for the article.",
        subject=("text",),
        target_word="headline",
        words={"text": "article", "title": "headline"},
    ),
    TaskPrompts(
        task=TASKS["LaMP_5"],
        instruction="Write this researcher's title for the paper.",
        subject=("abstract",),
        target_word="title",
        words={"abstract": "abstract", "title": "title"},
    ),
    TaskPrompts(
        task=TASKS["LaMP_7"],
        instruction="Put this text as the person would tweet it.",
        subject=("original",),
        target_word="tweet",
        words={"original": "text", "text": "tweet"},
        item_instruction="Write a tweet of this person's.",
    ),
)
PROMPTS: dict[str, TaskPrompts] = {prompts.task.name: prompts for prompts in _PROMPTS}
"""By LaMP's name of the task."""
