"""PRISM (Kirk et al., arXiv 2404.16019): what people chose in their own conversations with language models.

A turn has a message of the user and two to four responses, each with the user's score from 1 to 100; the conversation goes on
with the chosen one. The chosen response is compared with each other one of its turn that has a lower score. The prompt of a
later turn is the conversation so far. Either file holds it all: conversations.jsonl (with times), or utterances.jsonl (a row a
response, without).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from penchant.data.dataset import check_vacant
from penchant.data.importers.collecting import Choices, Origin, Responses, conversation, write_dataset
from penchant.data.importers.reading import Part, find_parts, text_of, value_of
from penchant.errors import DataError

_BLANK = "EMPTY STRING"
"""What PRISM writes for a text that is not there (repository HannahKirk/prism-alignment, process_text)."""


def import_prism(source: str, out: Path) -> str:
    """Makes the data set; returns what it holds and what to run next, in words.

    Comparisons are kept with `conversation_id` and `turn`.

    Args:
        source: conversations.jsonl or utterances.jsonl, the folder of them, or `hub:HannahRoseKirk/prism-alignment`.

    Raises:
        DataError: A file is missing, or a row is not in the published layout; told with its row and field.
        OutputError: `out` is there and not empty.
    """
    check_vacant(out)
    columns = (
        "user_id", "conversation_id", "conversation_history", "generated_datetime",
        "turn", "user_prompt", "model_response", "score", "if_chosen",
    )  # fmt: skip
    parts = find_parts(
        source, columns=columns, hub_config="conversations", wanted=lambda name: _is_of(name, "conversations", "utterances")
    )
    if any(_is_of(part.name, "conversations") for part in parts):  # the utterances hold the same again
        parts = [part for part in parts if not _is_of(part.name, "utterances")]
    responses, choices = Responses(), Choices(Counter())
    for talk in _conversations(parts):
        history: list[dict[str, str]] = []
        for number in sorted(talk.turns):
            prompt, answers = talk.turns[number]
            history.append({"role": "user", "content": prompt})
            chosen = [answer for answer in answers if answer.chosen]
            if len({answer.text for answer in chosen}) != 1:  # published by text: two of one text are both chosen
                choices.left_out["of a turn without one chosen response"] += 1
                break  # what the rest of the conversation follows is not known
            _compare(talk, number, conversation(history) if prompt else "", chosen[0], answers, responses, choices)
            history.append({"role": "assistant", "content": chosen[0].text})
    if None in choices.facts.get("timestamp", []):
        del choices.facts["timestamp"]
    return write_dataset(
        out,
        Origin(data_set="PRISM", source=source, users_are="people", protocol={"files": [part.name for part in parts]}),
        responses.table(),
        user=choices.user,
        chosen=choices.chosen,
        rejected=choices.rejected,
        facts=choices.facts,
        users=None,
        left_out=choices.left_out,
        seed=0,
    )


@dataclass(frozen=True)
class _Answer:
    text: str
    score: float | None
    chosen: bool


@dataclass(frozen=True)
class _Talk:
    identity: str
    user: str
    time: datetime | None
    turns: dict[int, tuple[str, list[_Answer]]]
    """The user's message and the answers, by turn."""


def _is_of(name: str, *kinds: str) -> bool:
    """Whether a file, or a folder that it is in, is named so."""
    return any(piece.startswith(kinds) for piece in PurePosixPath(name).parts)


def _compare(
    talk: _Talk, turn: int, prompt: str, chosen: _Answer, answers: list[_Answer], responses: Responses, choices: Choices
) -> None:
    row = responses.row(prompt, chosen.text)
    for other in answers:
        if other is chosen:
            continue
        if chosen.score is None or other.score is None or other.score >= chosen.score:
            choices.left_out["whose rejected response has no lower score"] += 1
            continue
        facts = {"conversation_id": talk.identity, "turn": turn, "timestamp": talk.time}
        choices.add(talk.user, row, responses.row(prompt, other.text), **facts)


def _conversations(parts: list[Part]) -> Iterator[_Talk]:
    talks: dict[str, _Talk] = {}
    for where, row in itertools.chain.from_iterable(part.rows() for part in parts):
        user, identity = text_of(row, "user_id", where), text_of(row, "conversation_id", where)
        if not user or not identity:
            raise DataError("'user_id' or 'conversation_id' is blank.", where=where, fix="Drop the row.")
        if "conversation_history" in row:
            yield _Talk(identity, user, _time(row, where), _turns(value_of(row, "conversation_history", where, list), where))
            continue
        # Utterances: the rows of a conversation need not stand together, so all are read first.
        talk = talks.setdefault(identity, _Talk(identity, user, None, {}))
        _, answers = talk.turns.setdefault(value_of(row, "turn", where, int), (_text(row, "user_prompt", where), []))
        answers.append(_answer(row, "model_response", where))
    yield from talks.values()


def _turns(history: list[dict[str, Any]], where: str) -> dict[int, tuple[str, list[_Answer]]]:
    turns: dict[int, tuple[str, list[_Answer]]] = {}
    for number, message in enumerate(history):
        place = f"{where}, message {number}"
        turn, role = value_of(message, "turn", place, int), value_of(message, "role", place)
        if role == "user":
            turns[turn] = (_text(message, "content", place), [])
        elif role == "model" and turn in turns:
            turns[turn][1].append(_answer(message, "content", place))
        else:
            raise DataError(f"A {role!r} of turn {turn} before its user's message.", where=place, fix="Get the file again.")
    return turns


def _answer(row: dict[str, Any], name: str, where: str) -> _Answer:
    score = value_of(row, "score", where, (int, float, type(None)))
    return _Answer(_text(row, name, where), score, value_of(row, "if_chosen", where, bool))


def _text(row: dict[str, Any], name: str, where: str) -> str:
    text = text_of(row, name, where)
    return "" if text == _BLANK else text


def _time(row: dict[str, Any], where: str) -> datetime | None:
    value = row.get("generated_datetime")
    if value is None or isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(str(value))
    except ValueError:
        raise DataError(f"'generated_datetime' is no time (got {value!r}).", where=where, fix="Drop the row.") from None
