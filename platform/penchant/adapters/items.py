"""From examples to what the grouped model is called with, and the loss of its answer.

Shapes: B rows, T tokens, H hidden width, L labels, V words, N target tokens of all rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from penchant.adapters.bases import base_fingerprint, label_numbers
from penchant.adapters.examples import Example
from penchant.backbone.activations import BLOCK, ActivationCache, kept_rows
from penchant.backbone.cut import lower_activations
from penchant.backbone.loading import check_window
from penchant.errors import DataError
from penchant.storage import default_cache_folder

_COMPUTED_AT_ONCE = 64
"""Items whose lower activations are computed together."""


@dataclass(frozen=True)
class Item:
    """An example as tokens."""

    tokens: tuple[int, ...]
    """Of the prompt and, for text, the target after it."""
    answer: int
    """The label's number; for text, how many of the tokens, at the end, are the target's."""

    @property
    def key(self) -> bytes:
        """Of what enters a layer: the same for the same tokens."""
        return hashlib.blake2b(np.array(self.tokens, dtype=np.int32).tobytes(), digest_size=16).digest()


class ItemReader:
    """Makes examples ready for a base.

    Args:
        base: The whole frozen base, with its head.
        tokenizer: Its tokenizer.
        max_tokens: The longest item.
        lowest: The lowest adapted layer; what enters it is read from the cache, or computed where it does not fit.
        cache_bytes: The cache's budget; 0 for no cache.
        cache_folder: The machine's unless told otherwise; activations lie in it by the base's fingerprint.

    Raises:
        ConfigError: The base has fewer positions than the longest item has tokens.
    """

    def __init__(
        self,
        base: Any,
        tokenizer: Any,
        *,
        max_tokens: int,
        lowest: int = 0,
        cache_bytes: int = 0,
        cache_folder: Path | None = None,
    ) -> None:
        check_window(base.config, max_tokens, where="base.max_tokens")
        self.base, self.tokenizer, self.max_tokens, self.lowest = base, tokenizer, max_tokens, lowest
        self.labels = None if base.can_generate() else label_numbers(base)
        self.cache: ActivationCache | None = None
        if lowest and cache_bytes:
            name = f"{base_fingerprint(base)[:32]}-layer-{lowest}"
            folder = (cache_folder or default_cache_folder()) / "activations" / name
            self.cache = ActivationCache(folder, budget_bytes=cache_bytes)

    def check(self, user: str, examples: Sequence[Example]) -> None:
        """Whether a user's examples can be fitted on, before anything is computed.

        Raises:
            DataError: There is none, a prompt is blank, or a target is not a label of the base's head, or is empty.
        """
        if not examples:
            raise DataError("There is no example.", where=f"user {user!r}", fix="Leave the user out: the task model serves them.")
        for number, example in enumerate(examples):
            where = f"user {user!r}, example {number}"
            if self.labels is not None and example.target not in self.labels:
                known = ", ".join(list(self.labels)[:20])
                raise DataError(f"The target {example.target!r} is no label.", where=where, fix=f"The base knows: {known}.")
            if not example.prompt.strip():
                raise DataError("The prompt is blank.", where=where, fix="Leave the example out.")
            if not example.target:
                raise DataError("The target is empty.", where=where, fix="Leave the example out.")

    def fits(self, text: str) -> bool:
        """Whether a prompt is read whole."""
        return len(self._prompt(text)) <= self.max_tokens

    def prompt(self, text: str, room: int) -> list[int]:
        """Tokens of a prompt, at most `room`: what is over goes from its start, far from the question and the answer."""
        tokens = self._prompt(text)
        if len(tokens) <= room:
            return tokens
        first = tokens[:1] if tokens[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id) else []
        return first + tokens[len(tokens) - room + len(first) :]

    def _prompt(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer(text)["input_ids"]
        if self.labels is None:
            while tokens and tokens[-1] in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id):
                tokens = tokens[:-1]  # the prompt goes on
        return tokens

    def items(self, examples: Sequence[Example]) -> list[Item]:
        """The examples as tokens, in order."""
        if self.labels is not None:
            return [Item(tuple(self.prompt(each.prompt, self.max_tokens)), self.labels[each.target]) for each in examples]
        items = []
        for example in examples:
            target = self.tokenizer(example.target, add_special_tokens=False)["input_ids"]
            target = [*target[: self.max_tokens // 2 - 1], self.tokenizer.eos_token_id]
            items.append(Item((*self.prompt(example.prompt, self.max_tokens - len(target)), *target), len(target)))
        return items

    def fill(self, items: Sequence[Item]) -> None:
        """Computes and keeps what enters the lowest adapted layer, a block at a time, as far as the cache's budget goes.

        Raises:
            BackboneError: It is beyond float16.
            OutputError: The disk is full or the cache may not be written.
        """
        if self.cache is None:
            return
        missing = {item.key: item for item in items if item.key not in self.cache}
        ordered = sorted(missing.values(), key=lambda item: len(item.tokens))
        for start in range(0, len(ordered), BLOCK):
            block = ordered[start : start + BLOCK]
            if not self.cache.add([item.key for item in block], self._compute(block)):
                return  # there is no room, and those after it are longer

    def _compute(self, items: Sequence[Item]) -> list[Tensor]:
        """What enters the layer, float16 (T, H) for each item, whether it is kept or not: an adapter depends on no budget."""
        rows = []
        for start in range(0, len(items), _COMPUTED_AT_ONCE):
            part = items[start : start + _COMPUTED_AT_ONCE]
            hidden = lower_activations(self.base.base_model, self.lowest, self._tokens(part))
            rows += kept_rows(hidden, [len(item.tokens) for item in part], layer=self.lowest, where="adapter.layers")
        return rows

    def _tokens(self, items: Sequence[Item]) -> dict[str, Tensor]:
        rows = [torch.tensor(item.tokens) for item in items]
        pad = self.tokenizer.pad_token_id
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        length_B = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(tokens.shape[1]) < length_B[:, None]).long()
        return {"input_ids": tokens.to(self.base.device), "attention_mask": mask.to(self.base.device)}

    def inputs(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """The grouped model's arguments: tokens, padded on the right, and what enters the lowest adapted layer."""
        tokens = self._tokens(items)
        if not self.lowest:
            return tokens
        known = {} if self.cache is None else {item.key: self.cache.get(item.key) for item in items if item.key in self.cache}
        computed = iter(self._compute([item for item in items if item.key not in known]))
        rows = [known[item.key] if item.key in known else next(computed) for item in items]
        lower = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return tokens | {"lower": lower.to(self.base.device, self.base.dtype)}

    def weight(self, item: Item) -> int:
        """What an item counts for in the mean over a user's batch: its target tokens, or 1 for a label."""
        return item.answer if self.labels is None else 1

    def losses(self, items: Sequence[Item], logits: Tensor) -> Tensor:
        """Cross-entropy of each row's answer: (B,), summed over its target tokens.

        Args:
            logits: (B, L) of labels; or (B, P + T, V) of words, where prompt tuning put P tokens first.
        """
        if self.labels is not None:
            answer_B = torch.tensor([item.answer for item in items], device=logits.device)
            return functional.cross_entropy(_at_least_float(logits), answer_B, reduction="none")
        longest = max(len(item.tokens) for item in items)
        before = logits.shape[1] - longest - 1  # the token before says what comes next
        row, position, target = [], [], []
        for number, item in enumerate(items):
            places = range(len(item.tokens) - item.answer, len(item.tokens))
            row += [number] * item.answer
            position += [before + place for place in places]
            target += [item.tokens[place] for place in places]
        row_N, position_N, target_N = (torch.tensor(values, device=logits.device) for values in (row, position, target))
        loss_N = functional.cross_entropy(_at_least_float(logits[row_N, position_N]), target_N, reduction="none")
        return loss_N.new_zeros(len(items)).index_add(0, row_N, loss_N)


def _at_least_float(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
