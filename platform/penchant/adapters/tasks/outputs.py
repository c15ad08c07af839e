"""What a model's free text means as an answer to a task."""

from __future__ import annotations

import re

from penchant.adapters.tasks.prompts import PROMPTS
from penchant.data.lamp import LampTask

_STARS = re.compile(r"(?<![\d.])[1-5](?:\.\d+)?(?![\d])")
_QUOTES = "\"'“”‘’`"


def read_output(task: LampTask, text: str) -> str:
    """A label of the task, a number of stars or a text.

    A label is the one that the text names first, whatever stands around it; a longer label wins over one inside it. Where
    none is named, the text comes back as it is, and counts as wrong. Of a generated text, the first line counts, without
    quotation marks and without a repeated `headline:`.
    """
    text = text.strip()
    if task.kind == "rating":
        found = _STARS.search(text)
        return found.group() if found else text
    if task.kind == "classification":
        return _first_label(task, text) or text
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    word = PROMPTS[task.name].target_word
    if line.lower().startswith(f"{word}:"):
        line = line[len(word) + 1 :].strip()
    if len(line) > 1 and line[0] in _QUOTES and line[-1] in _QUOTES:
        line = line[1:-1].strip()
    return line


def _first_label(task: LampTask, text: str) -> str | None:
    lower = text.lower()
    if task.name == "LaMP_1":
        found = re.search(r"(?<!\d)[12](?!\d)", lower)
        return f"[{found.group()}]" if found else None
    places = []
    for label in task.labels:
        match = re.search(rf"(?<!\w){re.escape(label)}(?!\w)", lower)
        if match:
            places.append((match.start(), -len(label), label))
    return min(places)[2] if places else None
