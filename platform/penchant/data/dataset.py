"""A validated data set of comparisons: loaded once, checked once, integer-coded for the stages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from penchant.artifacts import read_json, refuse_uri, replace_folder, write_json
from penchant.data.checks import Tables, content_problems, positions, shape_problems, silent_users
from penchant.data.schema import SPLITS, TABLES, Problem
from penchant.errors import DataError, OutputError
from penchant.storage import Location, local_copy

ORIGIN = "origin.json"
"""In the folder of a data set that was imported: the source, its settings, who the users are, and what was left out."""
_SHOWN = 5


@dataclass(frozen=True)
class Comparisons:
    """Choices as rows of a data set's ids: aligned arrays (C,)."""

    user: np.ndarray
    """int64: row of `user_ids`."""
    chosen: np.ndarray
    """int64: row of `response_ids`."""
    rejected: np.ndarray
    """int64: row of `response_ids`."""
    split: np.ndarray
    """int8: index into `SPLITS`."""
    controversial: np.ndarray | None
    """bool: whether tastes disagree on the pair, where that is known."""
    timestamp: np.ndarray | None
    """When the choice was made, where that is known."""

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray) -> Comparisons:
        """The rows at an index, or under a mask."""
        columns: dict[str, Any] = {name: None if col is None else col[index] for name, col in vars(self).items()}
        return Comparisons(**columns)


class PreferenceDataset:
    """Users, responses and comparisons that keep the data contract. Made by `load` or `from_tables`."""

    def __init__(self, tables: Tables, warnings: Sequence[Problem]) -> None:
        responses, comparisons, users = (tables[name] for name in TABLES)
        self._tables = tables
        self.warnings = tuple(warnings)
        self.response_ids = _objects(responses, "response_id")
        self.responses: list[str] = responses["response"].to_pylist()
        self.prompt_ids, first, inverse = np.unique(_objects(responses, "prompt_id"), return_index=True, return_inverse=True)
        self.prompts: list[str] = [responses["prompt"][int(row)].as_py() for row in first]
        self.prompt_of_response = inverse.astype(np.int64)
        self.user_ids = _objects(users, "user_id")
        self.seen = _objects(users, "cohort") == "seen"
        self.group, self.group_names = _groups(users)
        split = _objects(comparisons, "split")
        optional = {
            name: comparisons[name].to_numpy() if name in comparisons.column_names else None
            for name in ("controversial", "timestamp")
        }
        self.comparisons = Comparisons(
            user=positions(comparisons, "user_id", users, "user_id"),
            chosen=positions(comparisons, "chosen_id", responses, "response_id"),
            rejected=positions(comparisons, "rejected_id", responses, "response_id"),
            split=np.select([split == name for name in SPLITS], range(len(SPLITS))).astype(np.int8),
            controversial=None if optional["controversial"] is None else optional["controversial"].astype(bool),
            timestamp=optional["timestamp"],
        )

    @classmethod
    def load(cls, path: Location) -> PreferenceDataset:
        """Loads and validates a folder of the three tables, or a URI of one.

        Raises:
            DataError: The folder or a table is missing or unreadable, or breaks the contract; the first problems are told.
        """
        return cls.from_tables(**read_tables(local_copy(path)), where=str(path))

    @classmethod
    def from_tables(
        cls, responses: pa.Table, comparisons: pa.Table, users: pa.Table, *, where: str = "tables"
    ) -> PreferenceDataset:
        """Validates tables in memory.

        Raises:
            DataError: They break the contract.
        """
        tables = {"responses": responses, "comparisons": comparisons, "users": users}
        problems = find_problems(tables)
        errors = [problem for problem in problems if problem.severity == "error"]
        if errors:
            shown = "\n  ".join(str(problem) for problem in errors[:_SHOWN])
            total = sum(problem.count for problem in errors)
            more = "\n  ... `penchant data check` lists them all." if len(errors) > _SHOWN else ""
            raise DataError(f"{total:,} problem{'s' if total > 1 else ''} in the data:\n  {shown}{more}", where=where)
        tables["comparisons"], mended = drop_repeats(tables["comparisons"])
        if mended:  # a repeat may have been all that a user had in train
            problems = [problem for problem in problems if problem.kind != "silent_user"] + silent_users(tables)
        return cls(tables, [*problems, *mended])

    def save(self, path: str | Path) -> None:
        """Writes the three tables, all columns kept, as a folder that appears whole.

        Raises:
            OutputError: The folder is there and not empty, or cannot be written.
        """
        write_tables(Path(path), self._tables)

    def tables(self) -> Tables:
        """The three tables, with every column that they came with."""
        return dict(self._tables)

    def select(self, *, split: str | tuple[str, ...] | None = None, cohort: str | None = None) -> Comparisons:
        """The comparisons of some splits and of the seen or unseen users."""
        mask = np.ones(len(self.comparisons), dtype=bool)
        if split is not None:
            names = (split,) if isinstance(split, str) else split
            mask &= np.isin(self.comparisons.split, [SPLITS.index(name) for name in names])
        if cohort is not None:
            mask &= self.seen[self.comparisons.user] == (cohort == "seen")
        return self.comparisons.take(mask)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what is learnt from: texts, ids, choices, splits, cohorts and groups."""
        digest = hashlib.sha256()
        for name in TABLES:
            table = self._tables[name]
            for column in sorted(table.column_names):
                digest.update(f"\0{name}.{column}\0".encode())
                digest.update(hashlib.sha256("\x1f".join(map(repr, table[column].to_pylist())).encode()).digest())
        return digest.hexdigest()

    def __repr__(self) -> str:
        seen = int(self.seen.sum())
        splits = ", ".join(f"{int((self.comparisons.split == code).sum()):,} {name}" for code, name in enumerate(SPLITS))
        return (
            f"PreferenceDataset({seen:,} seen and {len(self.seen) - seen:,} unseen users, {len(self.response_ids):,} "
            f"responses to {len(self.prompt_ids):,} prompts, comparisons: {splits})"
        )


def find_problems(tables: Tables) -> list[Problem]:
    """Every problem of the tables but repeats, which loading mends."""
    return shape_problems(tables) or content_problems(tables)


def read_tables(folder: Path, names: Sequence[str] = TABLES) -> Tables:
    """Reads the tables of a folder: `NAME.parquet`, or a partitioned directory `NAME`.

    Raises:
        DataError: The folder or a table is missing, or cannot be read; or it is a URI (`local_copy` takes one).
    """
    refuse_uri(folder)
    if not folder.is_dir():
        raise DataError("There is no such folder.", where=str(folder), fix="Give a folder of Parquet tables.")
    tables = {}
    for name in names:
        file = folder / f"{name}.parquet"
        source = file if file.exists() else folder / name
        if not source.exists():
            there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
            raise DataError(
                f"There is no table {name!r} ({name}.parquet or a directory {name}/).",
                where=str(folder),
                fix=f"The folder holds: {there}. `penchant data import --help` says how to make one.",
            )
        try:
            tables[name] = pq.read_table(source)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"It cannot be read as Parquet ({str(error).splitlines()[0]}).",
                where=str(source),
                fix="It may be cut short: write it again.",
            ) from None
    return tables


def read_origin(folder: Path) -> dict[str, Any] | None:
    """What an importer wrote of where a data set is from, and who its users are; None where nobody wrote it."""
    return read_json(folder / ORIGIN) if (folder / ORIGIN).is_file() else None


def check_vacant(folder: Path) -> None:
    """Whether a data set can be written there.

    Raises:
        OutputError: It is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError("It is there already, and not empty.", where=str(folder), fix="Choose another folder.")


def write_tables(folder: Path, tables: Tables, *, origin: dict[str, Any] | None = None) -> None:
    """Writes tables as a folder that appears whole, with where they are from.

    Raises:
        OutputError: The folder is there and not empty, or cannot be written.
    """
    check_vacant(folder)
    with replace_folder(folder) as draft:
        for name, table in tables.items():
            pq.write_table(table, draft / f"{name}.parquet")
        if origin is not None:
            write_json(draft / ORIGIN, origin)


def drop_repeats(comparisons: pa.Table) -> tuple[pa.Table, list[Problem]]:
    """Keeps a user's latest choice of a pair, in that row's split: by timestamp where there is one, else by row. Told as
    warnings."""
    user, chosen, rejected = (_objects(comparisons, name).astype(str) for name in ("user_id", "chosen_id", "rejected_id"))
    flipped = chosen > rejected
    low, high = np.where(flipped, rejected, chosen), np.where(flipped, chosen, rejected)
    codes = [np.unique(column, return_inverse=True)[1] for column in (user, low, high)]
    row = np.arange(len(user))
    time = comparisons["timestamp"].to_numpy() if "timestamp" in comparisons.column_names else row
    order = np.lexsort((row, time, codes[2], codes[1], codes[0]))
    key = np.stack(codes, axis=1)[order]
    last = np.ones(len(order), dtype=bool)
    last[:-1] = (key[1:] != key[:-1]).any(axis=1)
    if last.all():
        return comparisons, []
    # The row that stands for each dropped one: the last of its run.
    keeper = order[np.flatnonzero(last)[np.searchsorted(np.flatnonzero(last), np.arange(len(order)))]]
    dropped, kept = order[~last], keeper[~last]
    both_ways = flipped[dropped] != flipped[kept]
    problems = _repeats(
        "both_ways", "the same user chose the pair the other way in", dropped[both_ways], kept[both_ways], user
    ) + _repeats("repeated", "the same choice stands again in", dropped[~both_ways], kept[~both_ways], user)
    mask = np.ones(len(user), dtype=bool)
    mask[dropped] = False
    return comparisons.filter(pa.array(mask)), problems


def _repeats(kind: str, words: str, dropped: np.ndarray, kept: np.ndarray, user: np.ndarray) -> list[Problem]:
    if not len(dropped):
        return []
    first = int(np.argmin(dropped))
    return [
        Problem(
            kind,
            "comparisons",
            f"{words} row {kept[first]}",
            "The latest choice is kept.",
            row=int(dropped[first]),
            value=user[dropped[first]],
            severity="warning",
            count=len(dropped),
        )
    ]


def _objects(table: pa.Table, column: str) -> np.ndarray:
    return np.array(table[column].to_pylist(), dtype=object)


def _groups(users: pa.Table) -> tuple[np.ndarray | None, tuple[str, ...]]:
    if "group" not in users.column_names:
        return None, ()
    values = users["group"].to_pylist()
    names = tuple(sorted({str(value) for value in values if value is not None}))
    code = {name: number for number, name in enumerate(names)}
    return np.array([-1 if value is None else code[str(value)] for value in values], dtype=np.int64), names
