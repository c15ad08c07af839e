"""A user's scores as a reward for TRL's trainers (`GRPOTrainer(reward_funcs=...)`). TRL itself is not needed.

from penchant.client import Client
from penchant.client.trl import user_reward

trainer = GRPOTrainer(model, reward_funcs=user_reward(Client(), "ana"), train_dataset=prompts)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from penchant.client.client import Client
from penchant.errors import ConfigError, DataError

RESPONSES = 256
"""Responses in one request: the service's limit, unless it was set lower."""
TEXT_CHARACTERS = 20_000
"""Characters of a prompt or response: the service's limit, unless it was set lower."""
BODY_BYTES = 1_000_000
"""Bytes of texts in one request: the service takes 1,048,576 with all that is around them."""

Message = dict[str, Any]
"""`role` and `content`."""
Text = str | Sequence[Message]
"""A text, or a conversation."""


def user_reward(
    client: Client,
    user: str | None = None,
    *,
    user_column: str | None = None,
    prompt_column: str | None = None,
    allow_unknown: bool = False,
) -> UserReward:
    """A reward function: each completion's score, as the user would give it.

    Args:
        client: Asks the service.
        user: Whose reward. Leave it out to give `user_column`.
        user_column: The column of the data set that says whose reward each row gets: one function for many users.
        prompt_column: The column with the prompt's text, where the service is to see another than the policy does (without the
            system message, for example).
        allow_unknown: Whether to go on with uniform scores where nobody knows the user.

    Raises:
        ConfigError: Both or neither of `user` and `user_column`, or a client that is not a `Client`.
    """
    if not isinstance(client, Client):
        raise ConfigError(f"It is a {type(client).__name__}, not a Client.", where="client", fix="Pass penchant.client.Client().")
    if (user is None) == (user_column is None):
        raise ConfigError("Give one of user and user_column.", where="user_reward", fix="The column is for many users.")
    return UserReward(client, user, user_column, prompt_column, allow_unknown)


class UserReward:
    """What `user_reward` makes; its `__name__` is what TRL's logs call it.

    Texts are those that `penchant data import trl` would make of the same messages, so that the service scores what it was
    trained on. A completion that is blank has no score; it gets the lowest that the same user gives in this call to another
    completion of the prompt, so that silence never pays, or NaN (for TRL: no reward) where there is none.
    """

    def __init__(
        self, client: Client, user: str | None, user_column: str | None, prompt_column: str | None, allow_unknown: bool
    ) -> None:
        self.client, self.user, self.user_column, self.prompt_column = client, user, user_column, prompt_column
        self.allow_unknown = allow_unknown
        name = f"penchant_{user}" if user is not None else f"penchant_by_{user_column}"
        self.__name__ = re.sub(r"[^\w.-]+", "_", name)

    def __repr__(self) -> str:
        return f"<{self.__name__} of {self.client!r}>"

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float]:
        """A reward for each completion, in order.

        Args:
            prompts: Texts or conversations, one for each completion.
            completions: Texts or conversations.
            columns: What else TRL passes; only the named columns are read.

        Raises:
            DataError: A column is missing, prompts or completions have another form, or nobody knows the user.
            ClientError: The service did not score them.
        """
        asked = prompts if self.prompt_column is None else _column(columns, self.prompt_column, len(completions))
        users = (
            [self.user] * len(completions) if self.user_column is None else _column(columns, self.user_column, len(completions))
        )
        if len(asked) != len(completions):
            what = f"There are {len(asked)} prompts for {len(completions)} completions."
            raise DataError(what, where="prompts", fix="Give one for each completion.")
        groups: dict[tuple[str, str], list[int]] = {}
        for row, (user, prompt) in enumerate(zip(users, asked, strict=True)):
            groups.setdefault((user, _cut(plain(prompt, "prompts"))), []).append(row)
        rewards = [float("nan")] * len(completions)
        for (user, prompt), rows in groups.items():
            texts = [_cut(plain(completions[row], "completions")) for row in rows]
            for row, reward in zip(rows, self._rewards(user, prompt, texts), strict=True):
                rewards[row] = reward
        return rewards

    def _rewards(self, user: str, prompt: str, texts: list[str]) -> list[float]:
        """Of completions of one prompt; equal texts are scored once."""
        scores: dict[str, float] = {}
        for chunk in chunks(prompt, list(dict.fromkeys(text for text in texts if text))):
            answer = self.client.score(user, prompt, chunk)
            if answer.personalisation == "unknown" and not self.allow_unknown:
                raise DataError(
                    f"Nobody knows {user!r}: the scores would be everybody's.",
                    where="user_reward",
                    fix="Send some of their comparisons first, or pass allow_unknown=True.",
                )
            scores.update(zip(chunk, answer.scores, strict=True))
        lowest = min(scores.values(), default=float("nan"))
        return [scores.get(text, lowest) for text in texts]


def plain(text: Text, where: str) -> str:
    """A text or a conversation as one text: of one message its content, of several each with its role.

    Messages without text (calls of tools) are left out, as are images. So are characters that no text has: a model can emit
    them, and training should not stop for one.

    Raises:
        DataError: It is neither.
    """
    if not isinstance(text, str):
        contents = [(message.get("role", "user"), _content(message, where)) for message in _messages(text, where)]
        spoken = [(role, content) for role, content in contents if content.strip()]
        text = spoken[0][1] if len(spoken) == 1 else "\n\n".join(f"{role}: {content}" for role, content in spoken)
    return text.replace("\0", "").encode("utf-8", "ignore").decode().strip()


def _cut(text: str) -> str:
    """What of a text the service takes: training should not stop for a long one, and the base model reads far less."""
    return text[:TEXT_CHARACTERS]


def chunks(prompt: str, responses: Sequence[str]) -> Iterator[list[str]]:
    """Responses, in order, in as few requests as the service's limits allow."""
    room = BODY_BYTES - _size(prompt)
    chunk: list[str] = []
    filled = 0
    for response in responses:
        size = _size(response)
        if chunk and (len(chunk) == RESPONSES or filled + size > room):
            yield chunk
            chunk, filled = [], 0
        chunk.append(response)
        filled += size
    if chunk:
        yield chunk


def _size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode()) + 1


def _messages(conversation: Any, where: str) -> list[Message]:
    if not isinstance(conversation, list | tuple) or not all(isinstance(message, dict) for message in conversation):
        raise DataError("It is neither a text nor a list of messages.", where=where, fix="Give one of TRL's formats.")
    return list(conversation)


def _content(message: Message, where: str) -> str:
    content = message.get("content") or ""
    if isinstance(content, list | tuple):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise DataError(f"A message's content is a {type(content).__name__}.", where=where, fix="Give one of TRL's formats.")
    return content


def _column(columns: dict[str, Any], name: str, count: int) -> Sequence[Any]:
    if name not in columns:
        raise DataError(f"There is no column {name!r}; there are {', '.join(columns)}.", where="data set", fix="Name another.")
    if len(columns[name]) != count:
        what = f"Column {name!r} has {len(columns[name])} values for {count} completions."
        raise DataError(what, where="data set", fix="Give one for each completion.")
    return columns[name]
