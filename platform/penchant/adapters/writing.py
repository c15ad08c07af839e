"""The base model as a writer of profiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from penchant.errors import BackboneError


class ModelWriter:
    """Continues prompts greedily with a causal language model, so that the same prompt gives the same text.

    Args:
        model: A transformers causal LM, in eval mode.
        tokenizer: Its tokenizer.
        name: Says which model this is, with its revision: what it writes is kept under this name.
        max_new_tokens: Where it is cut off if it does not stop.
        batch_size: Prompts continued at once.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, max_new_tokens: int = 120, batch_size: int = 4) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.name = f"{name} greedy {max_new_tokens}"
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self._window: int | None = getattr(model.config, "max_position_embeddings", None)

    def fits(self, prompt: str) -> bool:
        """Whether the model's window has room for a prompt and what is written after it."""
        return self._room(len(self.tokenizer(prompt)["input_ids"]))

    def _room(self, tokens: int) -> bool:
        return self._window is None or tokens + self.max_new_tokens <= self._window

    @torch.inference_mode()
    def write(self, prompts: Sequence[str]) -> list[str]:
        """What the model says to each prompt, without the prompt.

        Raises:
            BackboneError: A prompt and what is to be written do not fit the model's window.
        """
        texts: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = list(prompts[start : start + self.batch_size])
            tokens = self.tokenizer(
                batch, padding=True, padding_side="left", return_token_type_ids=False, return_tensors="pt"
            ).to(self.model.device)
            length = tokens["input_ids"].shape[1]
            if not self._room(length):
                raise BackboneError(
                    f"A prompt of {length:,} tokens and {self.max_new_tokens:,} to write exceed the model's {self._window:,}.",
                    where=self.name,
                    fix="Choose a base with a longer window, or leave pag-written out.",
                )
            pad = self.tokenizer.pad_token_id
            written = self.model.generate(**tokens, do_sample=False, max_new_tokens=self.max_new_tokens, pad_token_id=pad)
            texts += self.tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)
        return [text.strip() for text in texts]
