"""Between texts and tokens: a chat as a prompt, and tokens as text while they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from penchant.errors import DataError

_HALF = "\ufffd"
"""How the beginning of a character is decoded whose rest is in the next token."""


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer."""
    configured = model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*several, tokenizer.eos_token_id) if token is not None)


def encode(tokenizer: Any, messages: Sequence[dict[str, str]], *, own_template: bool) -> tuple[int, ...]:
    """A chat as the tokens that an answer goes on from.

    Args:
        messages: Each with `role` and `content`.
        own_template: Whether to use the tokenizer's chat template, where it has one. Otherwise the contents stand one after the
            other with a blank line between them, so that a single message is read as `penchant adapters fit` reads a prompt.

    Raises:
        DataError: The template does not allow these messages.
    """
    if own_template and tokenizer.chat_template:
        try:
            return tuple(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False))
        except TemplateError as error:
            what = f"The model's chat template does not allow these messages ({str(error).rstrip('.')})."
            raise DataError(what, where="body.messages", fix="Change the roles or their order.") from None
    tokens: list[int] = tokenizer("\n\n".join(message["content"] for message in messages))["input_ids"]
    while tokens and tokens[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        tokens = tokens[:-1]  # the prompt goes on
    return tuple(tokens)


class TextStream:
    """Text of tokens that come one at a time, up to the first stop text.

    Args:
        stop: Texts that end it; they are not part of it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.stopped = False
        self._tokens: list[int] = []
        # What a token says depends on those before it (a space, half a character), but only on a few of them.
        self._first = self._told = 0
        self._held = ""

    def push(self, token: int) -> str:
        """What is certain now. What may be the beginning of a stop text, or half a character, is held back."""
        self._tokens.append(token)
        text = self._fresh()
        if text.endswith(_HALF):
            return ""
        self._first, self._told = self._told, len(self._tokens)
        self._held += text
        return self._let_go()

    def end(self) -> str:
        """What was held back."""
        rest = "" if self.stopped else self._held + self._fresh()
        self._held, self._first, self._told = "", len(self._tokens), len(self._tokens)
        return rest

    def _fresh(self) -> str:
        before, now = self._decoded(self._tokens[self._first : self._told]), self._decoded(self._tokens[self._first :])
        return now[len(before) :]

    def _decoded(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)  # type: ignore[no-any-return]

    def _let_go(self) -> str:
        places = [place for text in self.stop if (place := self._held.find(text)) >= 0]
        if places:
            self.stopped = True
            certain = self._held[: min(places)]
            self._held = ""
            return certain
        begun = max((_overlap(self._held, text) for text in self.stop), default=0)
        certain = self._held[: len(self._held) - begun]
        self._held = self._held[len(certain) :]
        return certain


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop text."""
    return next((count for count in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:count])), 0)
