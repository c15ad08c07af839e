"""TRL's preference formats, with a column that says whose choice it is.

Plain or conversational, with an explicit prompt or with the prompt as what `chosen` and `rejected` begin with; JSONL or
Parquet (https://huggingface.co/docs/trl/dataset_formats#preference).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from penchant.data.dataset import write_tables
from penchant.data.importers.collecting import conversation, text_key
from penchant.data.importers.reading import file_rows, whole_text
from penchant.errors import DataError

_KEPT = ("split", "controversial", "timestamp", "conversation_id")


def import_trl(source: Path, out: Path, *, user_column: str = "user_id") -> str:
    """Makes a data set folder; returns what it holds and what to run next, in words.

    Ids are hashes of the texts, so that the same response in two rows is one response. `split`, `controversial`,
    `timestamp` and `conversation_id` are kept where they are given, and so are `cohort` and `group` of users.

    Raises:
        DataError: The file is missing or unreadable, or a row is not in the format; told with its row and value.
        OutputError: `out` is there and not empty.
    """
    return import_rows(file_rows(source), out, user_column=user_column, source=str(source))


def import_rows(rows: Iterable[dict[str, Any]], out: Path, *, source: str, user_column: str = "user_id") -> str:
    """The same from rows that are there already.

    Raises: as `import_trl`; `source` is what its messages call the rows.
    """
    responses: dict[str, dict[str, str]] = {}
    comparisons: list[dict[str, Any]] = []
    users: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows):
        where = f"{source}, row {number}"
        user = whole_text(row.get(user_column))
        if not isinstance(user, str) or not user.strip():
            raise DataError(
                f"{user_column!r} must be a text (got {user!r}); the row has {', '.join(row)}.",
                where=where,
                fix="Name the column that says whose choice it is with --user-column.",
            )
        prompt, chosen, rejected = _texts(row, where)
        ids = [text_key(prompt, text) for text in (chosen, rejected)]
        for identity, text in zip(ids, (chosen, rejected), strict=True):
            responses[identity] = {
                "response_id": identity, "prompt_id": text_key(prompt), "prompt": prompt, "response": text,
            }  # fmt: skip
        kept = {name: row[name] for name in _KEPT if row.get(name) is not None}
        comparisons.append({"user_id": user, "prompt_id": text_key(prompt), "chosen_id": ids[0], "rejected_id": ids[1]} | kept)
        facts = {name: str(row[name]) for name in ("cohort", "group") if row.get(name) is not None}
        users.setdefault(user, {"user_id": user}).update(facts)
    if not comparisons:
        raise DataError("There is no row.", where=source, fix="Give at least one comparison.")
    tables = {
        "responses": pa.Table.from_pylist(list(responses.values())),
        "comparisons": _table(comparisons, _KEPT, source),
        "users": _table(list(users.values()), ("cohort", "group"), source),
    }
    write_tables(out, tables)
    words = f"{len(comparisons):,} comparisons of {len(users):,} users on {len(responses):,} responses, in {out}."
    missing = [name for name, table in (("split", "comparisons"), ("cohort", "users")) if name not in tables[table].column_names]
    return words + (f" It has no {' and no '.join(missing)}: run `penchant data split {out} OUT`." if missing else "")


def _texts(row: dict[str, Any], where: str) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as plain texts."""
    for name in ("chosen", "rejected"):
        if name not in row:
            raise DataError(f"There is no {name!r}; the row has {', '.join(row)}.", where=where, fix="Add it.")
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if prompt is None:
        if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
            raise DataError(
                f"Without a prompt, chosen and rejected must both be texts or both lists of messages (got {chosen!r:.40} and "
                f"{rejected!r:.40}).",
                where=where,
                fix="Mend or drop it.",
            )
        length = next((at for at, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]), 0)
        if isinstance(chosen, str):
            # Back to a word's start: texts may by chance begin alike.
            while length and not chosen[length - 1].isspace():
                length -= 1
        prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    texts = tuple(_plain(value, name, where) for name, value in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)))
    return texts[0], texts[1], texts[2]


def _plain(value: Any, name: str, where: str) -> str:
    if isinstance(value, list):
        for message in value:
            if not isinstance(message, dict) or not isinstance(message.get("content"), str):
                raise DataError(
                    f"{name} has a message that is not {{role, content}}: {str(message)[:80]!r}.",
                    where=where,
                    fix="Mend it.",
                )
        value = conversation(value)
    value = whole_text(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} must be a text that is not blank (got {value!r}).", where=where, fix="Mend or drop it.")
    return value.strip()


def _table(rows: list[dict[str, Any]], optional: tuple[str, ...], source: str) -> pa.Table:
    """A table with the optional columns that at least one row has."""
    columns = [name for name in rows[0] if name not in optional]
    columns += [name for name in optional if any(name in row for row in rows)]
    made = {}
    for name in columns:
        try:
            made[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"{name!r} is not of one type ({error}).", where=source, fix="Give texts alone, or numbers alone."
            ) from None
    return pa.table(made)
