"""From texts to tokens, in the one way that features, activations and experts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penchant.backbone.config import BackboneSettings

Text = tuple[str, str]
"""A prompt and a response."""


def tokenise(tokenizer: Any, texts: Sequence[Text], settings: BackboneSettings) -> Any:
    """`input_ids` and `attention_mask` (B, T) of (prompt, response) pairs, padded on the right; the response is cut.

    A prompt that would leave it no token at all (200 characters of code or Chinese may be as many tokens) is halved till it does.
    """
    room = settings.max_tokens - tokenizer.num_special_tokens_to_add(pair=True)
    prompts = [_cut(prompt, settings.prompt_characters, settings) for prompt, _ in texts]
    return tokenizer(
        _with_room(prompts, tokenizer, room, settings),
        [response for _, response in texts],
        truncation="only_second",
        max_length=settings.max_tokens,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )


def _cut(prompt: str, characters: int, settings: BackboneSettings) -> str:
    """So many characters of a prompt, from the side that its settings keep."""
    return prompt[:characters] if settings.prompt_truncation_side == "right" else prompt[max(0, len(prompt) - characters) :]


def _with_room(prompts: list[str], tokenizer: Any, room: int, settings: BackboneSettings) -> list[str]:
    def tokens(some: list[str]) -> list[int]:
        return [len(own) for own in tokenizer(some, add_special_tokens=False)["input_ids"]] if some else []

    distinct, cut = sorted(set(prompts)), {}
    for prompt, count in zip(distinct, tokens(distinct), strict=True):
        short = prompt
        while count >= room:
            short = _cut(short, len(short) // 2, settings)
            (count,) = tokens([short])
        cut[prompt] = short
    return [cut[prompt] for prompt in prompts]
