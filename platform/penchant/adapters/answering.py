"""Personal answers: a batch of any users' prompts in one pass, each through the user's own adapter.

Shapes: B rows, L labels, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penchant.adapters.applying import AdapterPool, How, Pinned
from penchant.adapters.items import Item, ItemReader
from penchant.errors import ConfigError, PenchantError


@dataclass(frozen=True)
class Answers:
    """What a batch was answered, and how each row was personalised."""

    texts: list[str]
    """(B,): a label's name, or what was written."""
    how: list[How]
    """(B,)"""
    problems: dict[str, PenchantError]
    """Why a user's adapter could not be used; these rows were answered by the task model."""
    probability: Tensor | None = None
    """(B, L) of the labels; None for text."""


class PersonalModel:
    """Answers by the adapters of a pool.

    Args:
        pool: Over a whole base (not one without its lower layers).
        reader: Of the same base.
    """

    def __init__(self, pool: AdapterPool, reader: ItemReader) -> None:
        if reader.lowest:
            raise ConfigError(
                "A base without its lower layers cannot answer.", where="reader", fix="Make the reader with lowest=0."
            )
        self.pool, self.reader = pool, reader

    @torch.inference_mode()
    def choose(self, users: Sequence[str], prompts: Sequence[str]) -> Answers:
        """The label of each prompt (B,), for its user.

        Raises:
            ConfigError: The base writes text.
        """
        if self.reader.labels is None:
            raise ConfigError("The base writes text; it has no labels to choose from.", where="base.answers", fix="Call write.")
        items = [Item(tuple(self.reader.prompt(prompt, self.reader.max_tokens)), 0) for prompt in prompts]
        inputs = self.reader.inputs(items)
        with self.pool.pinned(users) as pinned:
            logits = self._apart(pinned, inputs, lambda model, part: list(model(**part).logits.float()))
        probability = torch.stack(logits).softmax(1).cpu()
        names = self.reader.base.config.id2label
        texts = [names[number] for number in probability.argmax(1).tolist()]
        return Answers(texts, pinned.how, pinned.problems, probability)

    @torch.inference_mode()
    def write(self, users: Sequence[str], prompts: Sequence[str], **generation: Any) -> Answers:
        """What each user's model writes after each prompt (B,); `generation` are arguments of transformers' `generate`.

        Raises:
            ConfigError: The base has labels and cannot write.
        """
        if self.reader.labels is not None:
            raise ConfigError("The base chooses labels; it cannot write.", where="base.answers", fix="Call choose.")
        tokenizer, device = self.reader.tokenizer, self.reader.base.device
        rows = [torch.tensor(self.reader.prompt(prompt, self.reader.max_tokens)) for prompt in prompts]
        tokens = torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=tokenizer.pad_token_id, padding_side="left"
        )
        length_B = torch.tensor([len(row) for row in rows])
        longest = tokens.shape[1]
        mask = (torch.arange(longest) >= longest - length_B[:, None]).long()
        inputs = {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}

        def run(model: Any, part: dict[str, Tensor]) -> list[str]:
            written = model.generate(**part, pad_token_id=tokenizer.pad_token_id, **generation)
            if not self._adds_prompts(model):
                written = written[:, longest:]
            return tokenizer.batch_decode(written, skip_special_tokens=True)  # type: ignore[no-any-return]

        with self.pool.pinned(users) as pinned:
            return Answers(self._apart(pinned, inputs, run), pinned.how, pinned.problems)

    @staticmethod
    def _adds_prompts(model: Any) -> bool:
        return isinstance(model, _Bound) and model.pool.model.prompt_tokens > 0

    def _apart(self, pinned: Pinned, inputs: dict[str, Tensor], run: Callable[[Any, dict[str, Tensor]], list[Any]]) -> list[Any]:
        """The rows' results, in order: one pass; two where prompt tuning has no prompt for rows of nobody."""
        own = pinned.slot != self.pool.model.nobody
        if not self.pool.model.prompt_tokens or bool(own.all()):
            return run(_Bound(self.pool, pinned.slot), inputs)
        results: dict[int, Any] = {}
        for rows, model in ((own, _Bound(self.pool, pinned.slot[own])), (~own, self.reader.base)):
            if bool(rows.any()):
                part = {name: tensor[rows] for name, tensor in inputs.items()}
                results |= dict(zip(rows.nonzero().flatten().tolist(), run(model, part), strict=True))
        return [results[row] for row in range(len(own))]


@dataclass(frozen=True)
class _Bound:
    """A grouped model with its rows' slots in hand: it is called as the base is."""

    pool: AdapterPool
    slot: Tensor

    def __call__(self, **inputs: Any) -> Any:
        return self.pool.model(self.slot, **inputs)

    def generate(self, **inputs: Any) -> Tensor:
        return self.pool.model.generate(self.slot, **inputs)
