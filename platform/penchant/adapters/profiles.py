"""Textual profiles: what a user is like, in a few words, to stand at the head of a prompt (PAG).

Filled into a template from counts, which needs no model, or written by the base model and kept on disk.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Protocol

from penchant.adapters.tasks.prompts import PROMPTS
from penchant.artifacts import fingerprint, read_json, write_json
from penchant.data.lamp import Item, LampTask

_COMMON = 3
"""Labels, or words, that a template names."""
_AT_ONCE = 32
"""Profiles written before they are kept: what an interruption can lose."""


class Profiler(Protocol):
    """Says what a user is like."""

    def prepare(self, wanted: Sequence[tuple[str, Sequence[Item]]]) -> None:
        """Tells of profiles (user id, items) that will be asked for, so that they can be written in one go."""
        ...

    def profile(self, user_id: str, items: Sequence[Item]) -> str:
        """A profile from these items, of which there is at least one, and from no other."""
        ...


class Writer(Protocol):
    """A language model that continues prompts: the base model, or any other."""

    name: str
    """Says which model this is and how it writes: profiles are kept by it."""

    def write(self, prompts: Sequence[str]) -> list[str]:
        """What the model says to each prompt, without the prompt."""
        ...

    def fits(self, prompt: str) -> bool:
        """Whether the model's window has room for a prompt and what is written after it."""
        ...


class TemplateProfiler:
    """Profiles from counts: the commonest labels, how many stars, or how long and with which words somebody writes."""

    def __init__(self, task: LampTask) -> None:
        self.prompts = PROMPTS[task.name]

    def prepare(self, wanted: Sequence[tuple[str, Sequence[Item]]]) -> None:
        """Nothing: counting is quick."""

    def profile(self, user_id: str, items: Sequence[Item]) -> str:
        """A profile from these items and from no other."""
        prompts = self.prompts
        task, word = prompts.task, prompts.target_word
        targets = [item.fields[prompts.item_target(item)].strip() for item in items]
        if task.kind == "rating":
            stars = [int(target) for target in targets]
            counts = Counter(stars)
            spread = ", ".join(f"{star}: {counts[star] / len(stars):.0%}" for star in range(1, 6))
            return f"This person gives {mean(stars):.1f} stars on average ({spread})."
        if task.kind == "classification" and task.answer != "citation":
            named = ", ".join(f"{label} ({count / len(targets):.0%})" for label, count in _commonest(targets))
            return f"The {word} that this person gives most often: {named}."
        words = [target.split() for target in targets]
        openings = ", ".join(repr(opening) for opening, _ in _commonest([part[0].lower() for part in words]))
        endings = ", ".join(repr(ending) for ending, _ in _commonest([part[-1].lower() for part in words]))
        return (
            f"This person's texts have {mean(map(len, words)):.0f} words on average. "
            f"Most often they begin with {openings} and end with {endings}."
        )


class WrittenProfiler:
    """Profiles that a language model writes from past items, kept on disk by their content.

    What is kept is in a folder per user, so that a user's profiles can be taken away.

    Args:
        task: One of the seven.
        writer: The model.
        folder: Where profiles are kept.
        items: Items that the model is shown: the latest ones, and fewer where its window is small.
        item_words: Words of each of their fields.
    """

    def __init__(self, task: LampTask, writer: Writer, folder: Path, *, items: int = 10, item_words: int = 200) -> None:
        self.prompts, self.writer, self.folder = PROMPTS[task.name], writer, folder
        self.items, self.item_words = items, item_words

    def profile(self, user_id: str, items: Sequence[Item]) -> str:
        """A profile from these items and from no other.

        Raises:
            OutputError: It cannot be kept: the disk is full or the folder may not be written.
        """
        path = self._path_of(user_id, items)[0]
        if not path.is_file():
            self.prepare([(user_id, items)])
        return str(read_json(path)["profile"])

    def prepare(self, wanted: Sequence[tuple[str, Sequence[Item]]]) -> None:
        """Writes those of the profiles (user id, items) that are not there; each part is kept as soon as it is written.

        Raises:
            OutputError: They cannot be kept: the disk is full or the folder may not be written.
        """
        prompts = dict(self._path_of(user_id, items) for user_id, items in wanted)
        missing = [path for path in prompts if not path.is_file()]
        for start in range(0, len(missing), _AT_ONCE):
            part = missing[start : start + _AT_ONCE]
            for path, text in zip(part, self.writer.write([prompts[path] for path in part]), strict=True):
                write_json(path, {"profile": " ".join(text.split())})

    def prompt(self, items: Sequence[Item]) -> str:
        """What the model is given: as many of the latest items as its window has room for, and at least one."""
        shown = [self.prompts.shown(item, fields=None, max_words=self.item_words) for item in items[-self.items :]]
        while True:
            prompt = "\n".join([PROFILE_INSTRUCTIONS[self.prompts.task.name], *shown, "Profile:"])
            if len(shown) <= 1 or self.writer.fits(prompt):
                return prompt
            shown.pop(0)

    def forget(self, user_id: str) -> None:
        """Takes away every profile of a user's."""
        shutil.rmtree(self._folder_of(user_id), ignore_errors=True)

    def _path_of(self, user_id: str, items: Sequence[Item]) -> tuple[Path, str]:
        """Where a profile is kept, and the prompt that it is written from."""
        prompt = self.prompt(items)
        return self._folder_of(user_id) / f"{fingerprint([self.writer.name, prompt])[:32]}.json", prompt

    def _folder_of(self, user_id: str) -> Path:
        return self.folder / hashlib.sha256(user_id.encode()).hexdigest()[:32]


PROFILE_INSTRUCTIONS = {
    "LaMP_1": "These are papers of one author. Say in one or two sentences which topics this author works on and cites.",
    "LaMP_2N": "These are articles of one journalist. Say which category this journalist writes in most, and what decides it.",
    "LaMP_2M": "These are films as one viewer tagged them. Say which tag this viewer gives most, and what decides it.",
    "LaMP_3": "These are reviews of one person. Say how many stars a good and a bad review get from this person.",
    "LaMP_4": "These are articles of one journalist. Describe the pattern of the headlines: wording, order, length.",
    "LaMP_5": "These are papers of one author. Describe the pattern of the titles: wording, order, length.",
    "LaMP_7": "These are tweets of one person. Describe how this person writes: wording, punctuation, capitals, mood.",
}
"""What the model is asked for, by task."""


def _commonest(values: Sequence[str]) -> list[tuple[str, int]]:
    """The commonest values and their counts; of two that are as common, the first in the alphabet."""
    return sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))[:_COMMON]
