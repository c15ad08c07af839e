"""What importers share on their way to the three tables: responses held once, choices, what was left out, and the writing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penchant import __version__
from penchant.data.dataset import find_problems, write_tables
from penchant.data.split import VALID_SHARE, hold_out_valid
from penchant.errors import DataError

UsersAre = Literal["people", "simulated", "objectives"]
"""Who the users of a data set are: people who chose, made by a published rule, or what annotators were asked to look for."""
_CHUNK = 8192


def text_key(*texts: str) -> str:
    """The id of a text, or of a prompt and a response: the same wherever they stand."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def conversation(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as one prompt: a single message is its text; of several each begins with its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message.get('role', 'user')}: {message['content']}" for message in messages)


class Responses:
    """Distinct (prompt, response) texts by row, held as Arrow: a text costs its bytes."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._pending: list[tuple[str, str, str, str]] = []
        self._batches: list[pa.RecordBatch] = []

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, prompt: str, text: str) -> int:
        """The row of a response, which is added where it is new; -1 where the prompt or the response is blank."""
        if not prompt or not text:
            return -1
        key = text_key(prompt, text)
        found = self._rows.get(key)
        if found is None:
            found = self._rows[key] = len(self._rows)
            self._pending.append((key, text_key(prompt), prompt, text))
            if len(self._pending) == _CHUNK:
                self._flush()
        return found

    def find(self, prompt: str, text: str) -> int:
        """The row of a response, or -1."""
        return self._rows.get(text_key(prompt, text), -1)

    def table(self) -> pa.Table:
        """The responses' table of the data contract."""
        if self._pending:
            self._flush()
        return pa.Table.from_batches(self._batches, _SCHEMA)

    def _flush(self) -> None:
        columns = [pa.array(column, pa.string()) for column in zip(*self._pending, strict=True)]
        self._batches.append(pa.record_batch(columns, schema=_SCHEMA))
        self._pending = []


_SCHEMA = pa.schema([(name, pa.string()) for name in ("response_id", "prompt_id", "prompt", "response")])


@dataclass
class Choices:
    """Comparisons as they are met, one at a time: users by id, responses by row."""

    left_out: Counter[str]
    """Why comparisons were left out, with how many."""
    user: list[str] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    facts: dict[str, list[Any]] = field(default_factory=dict)
    """Other columns of the comparisons: the same ones for each."""

    def add(self, user: str, chosen: int, rejected: int, **facts: Any) -> None:
        """Adds a comparison, unless a response is blank (-1) or both are the same."""
        if chosen < 0 or rejected < 0:
            self.left_out["with a blank prompt or response"] += 1
        elif chosen == rejected:
            self.left_out["of a response with itself"] += 1
        else:
            self.user.append(user)
            self.chosen.append(chosen)
            self.rejected.append(rejected)
            for name, value in facts.items():
                self.facts.setdefault(name, []).append(value)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a data set is from: `origin.json` in its folder."""

    data_set: str
    """The published name."""
    source: str
    """What was read."""
    users_are: UsersAre
    protocol: dict[str, Any]
    """Every setting that decided what is in it."""


def write_dataset(
    out: Path,
    origin: Origin,
    responses: pa.Table,
    *,
    user: Sequence[str] | np.ndarray,
    chosen: Sequence[int] | np.ndarray,
    rejected: Sequence[int] | np.ndarray,
    facts: Mapping[str, Any],
    users: pa.Table | None,
    left_out: Counter[str],
    seed: int,
) -> str:
    """Writes the data set, with the responses that are in a comparison; returns what it holds and what to run next, in words.

    Test comparisons of prompts that are also trained on are left out, and told. Where the source has train and test alone,
    a tenth of each user's train comparisons becomes valid.

    Args:
        user: User ids (C,), with `chosen` and `rejected` rows of `responses`.
        facts: Further columns of the comparisons, each (C,): `split`, `controversial`, `timestamp`, or the source's own.
        users: The users' table; made of the ids where it is None.
        left_out: What the importer left out already.
        seed: Fixes which comparisons become valid.

    Raises:
        DataError: There is no comparison, or the tables break the contract; nothing is written.
        OutputError: `out` is there and not empty.
    """
    comparisons, left = _comparisons(responses, user, chosen, rejected, facts)
    if left:
        left_out["for test of a prompt that is also in train"] += left
    if not comparisons.num_rows:
        raise DataError(f"There is no comparison.{list_left_out(left_out)}", where=origin.source, fix="Check the files.")
    told_valid = ""
    if "split" in comparisons.column_names and not _some_valid(comparisons):
        comparisons = _with_valid(comparisons, seed)
        if _some_valid(comparisons):
            told_valid = f" Of each user's train comparisons, {VALID_SHARE:.0%} are valid now."
    ids = pa.array(sorted(set(comparisons["user_id"].to_pylist())), pa.string())
    users = pa.table({"user_id": ids}) if users is None else users.filter(pc.is_in(users["user_id"], ids))
    compared = pa.chunked_array(comparisons["chosen_id"].chunks + comparisons["rejected_id"].chunks).unique()
    responses = responses.filter(pc.is_in(responses["response_id"], compared))
    tables = {"responses": responses, "comparisons": comparisons, "users": users}
    _check(tables, origin.source)
    missing = [name for name, table in (("split", "comparisons"), ("cohort", "users")) if name not in tables[table].column_names]
    write_tables(out, tables, origin=vars(origin) | {"left_out": dict(+left_out), "penchant": __version__})
    people = {"people": "users", "simulated": "simulated users", "objectives": "objectives, each as a user,"}[origin.users_are]
    words = f"{comparisons.num_rows:,} comparisons of {users.num_rows:,} {people} on {responses.num_rows:,} responses, in {out}."
    words += list_left_out(left_out) + told_valid
    return words + (f" It has no {' and no '.join(missing)}: run `penchant data split {out} OUT`." if missing else "")


def list_left_out(left_out: Counter[str]) -> str:
    """A sentence of what was left out, after a space; "" where nothing was."""
    told = "; ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
    return f" Left out: {told}." if told else ""


def _comparisons(responses: pa.Table, user: Any, chosen: Any, rejected: Any, facts: Mapping[str, Any]) -> tuple[pa.Table, int]:
    """The table, and how many test comparisons were left out because their prompt is in train or valid."""
    chosen_rows, rejected_rows = (pa.array(np.asarray(rows, dtype=np.int64)) for rows in (chosen, rejected))
    columns: dict[str, Any] = {
        "user_id": pa.array(user, pa.string()),
        "prompt_id": responses["prompt_id"].take(chosen_rows),
        "chosen_id": responses["response_id"].take(chosen_rows),
        "rejected_id": responses["response_id"].take(rejected_rows),
    }
    table = pa.table(columns | {name: pa.array(values) for name, values in facts.items()})
    if "split" not in table.column_names:
        return table, 0
    test = pc.equal(table["split"], "test")
    learnt = table["prompt_id"].filter(pc.invert(test)).unique()
    kept = table.filter(pc.invert(pc.and_(test, pc.is_in(table["prompt_id"], learnt))))
    return kept, table.num_rows - kept.num_rows


def _some_valid(comparisons: pa.Table) -> bool:
    return bool(pc.any(pc.equal(comparisons["split"], "valid")).as_py())


def _with_valid(comparisons: pa.Table, seed: int) -> pa.Table:
    _, user = np.unique(np.array(comparisons["user_id"].to_pylist(), dtype=str), return_inverse=True)
    split = np.array(comparisons["split"].to_pylist(), dtype=object)
    hold_out_valid(split, user, VALID_SHARE, np.random.default_rng(seed))
    return comparisons.set_column(comparisons.column_names.index("split"), "split", pa.array(split, pa.string()))


def _check(tables: dict[str, pa.Table], where: str) -> None:
    """Raises for what loading would refuse; a split or cohort that is still to come is taken for one."""
    whole = dict(tables)
    for name, column, value in (("comparisons", "split", "train"), ("users", "cohort", "seen")):
        if column not in whole[name].column_names:
            whole[name] = whole[name].append_column(column, pa.array([value] * whole[name].num_rows, pa.string()))
    errors = [problem for problem in find_problems(whole) if problem.severity == "error"]
    if errors:
        raise DataError(
            "The tables would break the data contract:\n  " + "\n  ".join(map(str, errors[:5])),
            where=where,
            fix="The source is not what this importer knows; nothing was written.",
        )
