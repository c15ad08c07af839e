"""A data set without some of its users."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from penchant.data.dataset import read_origin, read_tables, write_tables
from penchant.errors import DataError

_NAMED = 5
_SIDES = ("chosen_id", "rejected_id")


def drop_users(folder: Path, out: Path, users: Sequence[str]) -> str:
    """Copies a data set without some users, their comparisons, and the responses that only they were shown; says what it did.

    Splits and cohorts are not needed, and are kept where they are.

    Raises:
        DataError: A table or column is missing or cannot be read, somebody is not in the data, or nothing would be left.
        OutputError: `out` is there and not empty.
    """
    tables = read_tables(folder)
    for name, columns in {"users": ("user_id",), "comparisons": ("user_id", *_SIDES), "responses": ("response_id",)}.items():
        for column in columns:
            if column not in tables[name].column_names:
                raise DataError(f"There is no column {column!r}.", where=f"{folder}: {name}", fix="Add it.")
    known = {user for name in ("users", "comparisons") for user in tables[name]["user_id"].to_pylist()}
    refuse_unknown(users, known, where=str(folder))
    theirs = _is_in(tables["comparisons"]["user_id"], set(users))
    dropped, kept = tables["comparisons"].filter(theirs), tables["comparisons"].filter(pc.invert(theirs))
    if not kept.num_rows:
        raise DataError("No comparison would be left.", where=str(folder), fix="Keep some users.")
    orphans = _shown(dropped) - _shown(kept)
    without = {
        "responses": tables["responses"].filter(pc.invert(_is_in(tables["responses"]["response_id"], orphans))),
        "comparisons": kept,
        "users": tables["users"].filter(pc.invert(_is_in(tables["users"]["user_id"], set(users)))),
    }
    write_tables(out, without, origin=read_origin(folder))
    counts = {name: tables[name].num_rows - table.num_rows for name, table in without.items()}
    return (
        f"Without {counts['users']:,} users, their {counts['comparisons']:,} comparisons and the {counts['responses']:,} "
        f"responses that only they were shown: {kept.num_rows:,} comparisons of {without['users'].num_rows:,} users, in {out}."
    )


def refuse_unknown(users: Sequence[str], known: Collection[str], *, where: str) -> None:
    """Raises `DataError` for those of the users who are not known, and names them."""
    unknown = [repr(user) for user in users if user not in known]
    if unknown:
        more = f" and {len(unknown) - _NAMED:,} more" if len(unknown) > _NAMED else ""
        raise DataError(
            f"Not known here: {', '.join(unknown[:_NAMED])}{more}.", where=where, fix="Check the ids. Nothing was changed."
        )


def _is_in(column: pa.ChunkedArray, values: set[str]) -> pa.ChunkedArray:
    return pc.is_in(column.cast(pa.string()), value_set=pa.array(sorted(values), pa.string()))


def _shown(comparisons: pa.Table) -> set[str]:
    return {response for side in _SIDES for response in comparisons[side].to_pylist()}
