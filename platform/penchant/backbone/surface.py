"""Features of a response's surface: how long it is and how it is laid out.

A window of 128 tokens cannot see that a text goes on for 500, and a pooled embedding hardly sees its lists and headings;
people's choices depend on both. These are read from the whole response, in linear time.
"""

from __future__ import annotations

import re

import numpy as np

SURFACE_NAMES = (
    "log_words",
    "log_lines",
    "log_paragraphs",
    "list_lines",
    "heading_lines",
    "bold",
    "code",
    "word_length",
    "sentence_length",
    "distinct_words",
    "punctuation",
    "digits",
    "capitals",
    "questions",
    "exclamations",
    "first_person",
)
"""What each column of `surface_features` is."""

_LIST = re.compile(r"^\s*(?:[-*\u2022\u2013]|\d+[.)])\s")
_HEADING = re.compile(r"^\s*(?:#{1,6}\s|[^.!?]{3,60}:\s*$)")
_FIRST_PERSON = re.compile(r"\b(?:i|me|my|we|our|us|i'm|i've)\b", re.IGNORECASE)


def surface_features(responses: list[str]) -> np.ndarray:
    """One row of `SURFACE_NAMES` for each response, not standardised: float32 (N, 16)."""
    return np.array([_row(response) for response in responses], dtype=np.float32).reshape(-1, len(SURFACE_NAMES))


def _row(text: str) -> list[float]:
    words = text.split()
    lines = [line for line in text.splitlines() if line.strip()]
    sentences = [part for part in re.split(r"[.!?]+(?:\s|$)", text) if part.strip()]
    characters, count, rows = max(1, len(text)), max(1, len(words)), max(1, len(lines))
    return [
        float(np.log1p(len(words))),
        float(np.log1p(len(lines))),
        float(np.log1p(text.count("\n\n"))),
        sum(bool(_LIST.match(line)) for line in lines) / rows,
        sum(bool(_HEADING.match(line)) for line in lines) / rows,
        float(np.log1p(text.count("**") / 2)),
        float(np.log1p(text.count("`"))),
        sum(map(len, words)) / count,
        float(np.log1p(len(words) / max(1, len(sentences)))),
        len({word.lower() for word in words}) / count**0.5,  # Guiraud's index: hardly depends on the length
        sum(not (char.isalnum() or char.isspace()) for char in text) / characters,
        sum(char.isdigit() for char in text) / characters,
        sum(char.isupper() for char in text) / characters,
        float(np.log1p(text.count("?"))),
        float(np.log1p(text.count("!"))),
        len(_FIRST_PERSON.findall(text)) / count,
    ]
