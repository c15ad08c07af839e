"""Writing with a language model, many rows side by side, each through the adapter in its own slot.

Rows come and go between two steps. The keys and values of a row lie at the right end of the shared cache, so that all rows go on
at the same column; what is left of a shorter row is masked. Each row has its own positions: it is written as if it were alone.

Shapes: B rows, T columns of the cache, V words.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from penchant.backbone.grouped.model import GroupedModel


@dataclass(eq=False)
class Row:
    """One text that is written."""

    slot: int
    """Of its adapter."""
    prompt: tuple[int, ...]
    """Tokens; at least one."""
    temperature: float = 1.0
    """0: always the most likely word."""
    top_p: float = 1.0
    """Words are drawn from the likeliest ones that have this probability together."""
    random: random.Random = field(default_factory=random.Random)
    """What this row is drawn by, and no other row."""


class Decoder:
    """Rows that are written together. Not for several threads at once.

    Args:
        model: Over a whole causal language model.
    """

    def __init__(self, model: GroupedModel) -> None:
        self.model = model
        self.rows: list[Row] = []
        self._cache = DynamicCache()
        device = next(iter(model.stacked.values())).device
        self._slot_B, self._position_B, self._token_B = (torch.zeros(0, dtype=torch.long, device=device) for _ in range(3))
        self._mask_BT = torch.zeros(0, 0, dtype=torch.long, device=device)

    @torch.inference_mode()
    def add(self, rows: Sequence[Row]) -> list[int]:
        """Reads the prompts of new rows, and writes the first token of each: in order.

        Rows of one slot with the same prompt are read once.
        """
        own: list[int] = []
        for part in self._readable_together(rows):
            own += self._add_together(part)
        return own

    @torch.inference_mode()
    def step(self) -> list[int]:
        """Writes the next token of each of `rows`, in order."""
        self._mask_BT = functional.pad(self._mask_BT, (0, 1), value=1)
        logits_BV = self.model(
            self._slot_B,
            input_ids=self._token_B[:, None],
            attention_mask=self._mask_BT,
            position_ids=self._position_B[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        self._position_B = self._position_B + 1
        self._token_B = sample(logits_BV, self.rows)
        return self._token_B.tolist()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def drop(self, rows: Collection[Row]) -> None:
        """Takes rows away, and what only they needed of the cache."""
        kept = [number for number, row in enumerate(self.rows) if row not in rows]
        self.rows = [self.rows[number] for number in kept]
        index = torch.tensor(kept, dtype=torch.long, device=self._slot_B.device)
        self._slot_B, self._position_B, self._token_B = (
            tensor[index] for tensor in (self._slot_B, self._position_B, self._token_B)
        )
        mask = self._mask_BT[index]
        first = int(mask.any(0).long().argmax()) if kept else mask.shape[1]
        self._mask_BT = mask[:, first:]
        layers = [(keys[index, :, first:], values[index, :, first:]) for keys, values in _layers(self._cache)] if kept else []
        self._cache = _cache_of(layers)

    def _readable_together(self, rows: Sequence[Row]) -> list[Sequence[Row]]:
        """Prompt tuning has no prompt for rows of nobody: these are read apart. The order is kept."""
        if not self.model.prompt_tokens:
            return [rows] if rows else []
        parts: list[list[Row]] = []
        for row in rows:
            if not parts or (parts[-1][-1].slot == self.model.nobody) != (row.slot == self.model.nobody):
                parts.append([])
            parts[-1].append(row)
        return list(parts)

    def _add_together(self, rows: Sequence[Row]) -> list[int]:
        device = self._slot_B.device
        prompts = list(dict.fromkeys((row.slot, row.prompt) for row in rows))
        of_row = torch.tensor([prompts.index((row.slot, row.prompt)) for row in rows], device=device)
        slot = torch.tensor([slot for slot, _ in prompts], device=device)
        longest = max(len(prompt) for _, prompt in prompts)
        tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for _, prompt in prompts], device=device)
        length = torch.tensor([len(prompt) for _, prompt in prompts], device=device)
        mask = (torch.arange(longest, device=device) >= longest - length[:, None]).long()
        before = 0 if not self.model.prompt_tokens or rows[0].slot == self.model.nobody else self.model.prompt_tokens
        whole = functional.pad(mask, (before, 0), value=1)
        cache = DynamicCache()
        inputs: dict[str, Any] = {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": (whole.cumsum(1) - 1).clamp(min=0),
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        bare = self.model.prompt_tokens and not before
        output = self.model.base(**inputs) if bare else self.model(slot, **inputs)
        fresh = sample(output.logits[:, -1][of_row], rows)
        self._join(cache, whole[of_row], of_row)
        self.rows += rows
        self._slot_B = torch.cat([self._slot_B, slot[of_row]])
        self._position_B = torch.cat([self._position_B, (length + before)[of_row]])
        self._token_B = torch.cat([self._token_B, fresh])
        return fresh.tolist()  # type: ignore[no-any-return]

    def _join(self, cache: DynamicCache, mask: Tensor, of_row: Tensor) -> None:
        """Puts rows below those that are there; whichever are shorter are filled up on the left."""
        new = [(keys[of_row], values[of_row]) for keys, values in _layers(cache)]
        if self.rows:
            columns = max(mask.shape[1], self._mask_BT.shape[1])
            new = [
                (_stacked(keys, new_keys, columns), _stacked(values, new_values, columns))
                for (keys, values), (new_keys, new_values) in zip(_layers(self._cache), new, strict=True)
            ]
            mask = torch.cat([functional.pad(each, (columns - each.shape[1], 0)) for each in (self._mask_BT, mask)])
        self._mask_BT, self._cache = mask, _cache_of(new)


def _stacked(above: Tensor, below: Tensor, columns: int) -> Tensor:
    """(B, heads, T, width) with T = columns, of the rows of both."""
    return torch.cat([functional.pad(tensor, (0, 0, columns - tensor.shape[2], 0)) for tensor in (above, below)])


def _layers(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def _cache_of(layers: Sequence[tuple[Tensor, Tensor]]) -> DynamicCache:
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


def sample(logits_BV: Tensor, rows: Sequence[Row]) -> Tensor:
    """A word for each row, (B,), drawn as the row says; it depends on that row's logits and on nothing else."""
    if all(row.temperature == 0 for row in rows):
        return logits_BV.argmax(1)

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_BV.device)[:, None]

    temperature_B1 = column([row.temperature or 1.0 for row in rows])
    probability_BV = (logits_BV.double() / temperature_B1).softmax(1)
    if any(row.top_p < 1 for row in rows):
        # Words stay in their own order, so that the same number draws the same word whatever the others' top_p is.
        top_p_B1 = column([row.top_p for row in rows])
        sorted_BV, order_BV = probability_BV.sort(dim=1, descending=True, stable=True)
        over_BV = (sorted_BV.cumsum(1) - sorted_BV >= top_p_B1) & (top_p_B1 < 1)
        probability_BV = probability_BV.masked_fill(torch.zeros_like(over_BV).scatter(1, order_BV, over_BV), 0.0)
    sum_BV = probability_BV.cumsum(1)
    drawn_B1 = column([row.random.random() if row.temperature else 0.0 for row in rows])
    word_B = (sum_BV <= drawn_B1 * sum_BV[:, -1:]).sum(1).clamp(max=logits_BV.shape[1] - 1)
    greedy_B = torch.tensor([row.temperature == 0 for row in rows], device=logits_BV.device)
    return torch.where(greedy_B, logits_BV.argmax(1), word_B)
