"""Community Alignment (Zhang et al., arXiv 2507.09650): annotators of five countries, each turn with up to four responses.

A row is a conversation of up to four turns: `first_turn_prompt`, `first_turn_response_a` to `_d`,
`first_turn_preferred_response` ("response_b"), and so on. The preferred response is compared with each other one of its turn;
the prompt of a later turn is the conversation so far, with the preferred responses. A conversation that stands in several files
(filtered, full) counts once.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa

from penchant.data.dataset import check_vacant
from penchant.data.importers.collecting import Choices, Origin, Responses, conversation, write_dataset
from penchant.data.importers.reading import Row, find_parts, text_of, value_of
from penchant.errors import DataError

TURNS = ("first", "second", "third", "fourth")
ANNOTATOR = ("age", "gender", "education_level", "political", "ethnicity", "country")
"""What annotators told of themselves; columns `annotator_age` and so on, kept with the users where they are there."""
_END = "<|end_of_text|>"
"""What some responses end with."""


def import_community_alignment(source: str, out: Path, *, language: str | None = None) -> str:
    """Makes the data set; returns what it holds and what to run next, in words.

    Comparisons are kept with `conversation_id`, `turn` and `language`.

    Args:
        source: A CSV, JSONL or Parquet file, a folder of them, or `hub:facebook/community-alignment-dataset`.
        language: Only conversations that were assigned in it, such as `en`.

    Raises:
        DataError: A file is missing, or a row is not in the published layout; told with its row and field.
        OutputError: `out` is there and not empty.
    """
    check_vacant(out)
    columns = ["conversation_id", "annotator_id", "assigned_lang", *(f"annotator_{name}" for name in ANNOTATOR)]
    for turn in TURNS:
        columns += [f"{turn}_turn_prompt", f"{turn}_turn_preferred_response", *(f"{turn}_turn_response_{one}" for one in "abcd")]
    responses, choices = Responses(), Choices(Counter())
    users: dict[str, dict[str, str]] = {}
    read: set[str] = set()
    for part in find_parts(source, columns=columns):
        for where, row in part.rows():
            identity, user = (str(value_of(row, name, where, (str, int))) for name in ("conversation_id", "annotator_id"))
            spoken = text_of(row, "assigned_lang", where)
            if identity in read or (language is not None and spoken != language):
                continue
            read.add(identity)
            facts = users.setdefault(user, {})
            for name in ANNOTATOR:
                facts[name] = facts.get(name) or _optional(row, f"annotator_{name}", where)
            _compare(user, {"conversation_id": identity, "language": spoken}, row, where, responses, choices)
    if language is not None and not read:
        raise DataError(f"There is no conversation in {language!r}.", where=source, fix="It is one of en, fr, hi, it and pt.")
    told = [name for name in ANNOTATOR if any(facts[name] for facts in users.values())]
    return write_dataset(
        out,
        Origin(data_set="Community Alignment", source=source, users_are="people", protocol={"language": language}),
        responses.table(),
        user=choices.user,
        chosen=choices.chosen,
        rejected=choices.rejected,
        facts=choices.facts,
        users=pa.table(
            {"user_id": list(users)} | {f"annotator_{name}": [facts[name] or None for facts in users.values()] for name in told}
        ),
        left_out=choices.left_out,
        seed=0,
    )


def _compare(user: str, facts: dict[str, str], row: Row, where: str, responses: Responses, choices: Choices) -> None:
    history: list[dict[str, str]] = []
    for number, turn in enumerate(TURNS):
        read = _optional if number else text_of  # there is a first turn
        preferred, prompt = read(row, f"{turn}_turn_preferred_response", where), read(row, f"{turn}_turn_prompt", where)
        if not preferred or not prompt:
            if prompt:
                choices.left_out["of a turn without a preferred response"] += 1
            return
        letter = preferred.removeprefix("response_").lower()
        texts = {one: _optional(row, f"{turn}_turn_response_{one}", where).removesuffix(_END).strip() for one in "abcd"}
        if letter not in texts:
            raise DataError(
                f"{turn}_turn_preferred_response must be response_a to response_d (got {preferred!r}).",
                where=where,
                fix="Give the files as they were published.",
            )
        history.append({"role": "user", "content": prompt})
        asked = conversation(history)
        chosen = responses.row(asked, texts[letter])
        for other, text in texts.items():
            if other != letter and text:
                choices.add(user, chosen, responses.row(asked, text), turn=number, **facts)
        history.append({"role": "assistant", "content": texts[letter]})


def _optional(row: Row, name: str, where: str) -> str:
    """A text of a row; "" where there is no such field."""
    return text_of(row, name, where) if name in row else ""
