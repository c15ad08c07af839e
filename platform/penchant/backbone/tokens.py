"""From texts to tokens, in the one way that features, activations and experts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penchant.backbone.config import BackboneSettings

Text = tuple[str, str]
"""A prompt and a response."""


def tokenise(tokenizer: Any, texts: Sequence[Text], settings: BackboneSettings) -> Any:
    """`input_ids` and `attention_mask` (B, T) of (prompt, response) pairs, padded on the right; the response is cut."""
    return tokenizer(
        [prompt[: settings.prompt_characters] for prompt, _ in texts],
        [response for _, response in texts],
        truncation="only_second",
        max_length=settings.max_tokens,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
