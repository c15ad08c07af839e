"""What a personal adapter is fitted on: a user's own items as text in, text out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One item of a user's history as the base model sees it."""

    prompt: str
    """What the model is given."""
    target: str
    """What it should say: a label's name or number, or the text to write."""
