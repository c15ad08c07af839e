"""Files of onboarded users, and of the choices they are onboarded from."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from penchant.artifacts import read_json, refuse_uri, write_json
from penchant.data.choices import TextComparison
from penchant.errors import ArtifactError, DataError
from penchant.scoring.rows import check_texts, is_text
from penchant.storage import Location, local_copy

CHOICE_COLUMNS = ("user_id", "prompt", "chosen", "rejected")
"""What a choice has to have, as text."""
_CHOICES = pa.schema([(name, pa.string()) for name in CHOICE_COLUMNS])
_ROWS = 65_536


def read_choices(path: Path) -> dict[str, list[TextComparison]]:
    """Choices by user from JSONL or Parquet with user_id, prompt, chosen and rejected (texts).

    Raises:
        DataError: The file is missing or unreadable, or a row lacks a text.
    """
    refuse_uri(path)
    if not path.is_file():
        raise DataError("There is no such file.", where=str(path), fix="Give a JSONL or Parquet file.")
    with path.open("rb") as file:
        choices = group_choices(choice_tables(file, where=str(path)))
    if not choices:
        raise DataError("There is no comparison.", where=str(path), fix="Give at least one.")
    return choices


def group_choices(tables: Iterable[pa.Table]) -> dict[str, list[TextComparison]]:
    """Choices by user, from rows with `CHOICE_COLUMNS`."""
    choices: dict[str, list[TextComparison]] = {}
    for table in tables:
        for user, *texts in zip(*(table[name].to_pylist() for name in CHOICE_COLUMNS), strict=True):
            choices.setdefault(user, []).append(TextComparison(*texts))
    return choices


def choice_tables(file: BinaryIO, *, where: str) -> Iterator[pa.Table]:
    """Tables of `CHOICE_COLUMNS`, in order, from an open JSONL or Parquet file of choices (by the suffix of `where`).

    Raises:
        DataError: It cannot be read, or a row lacks a text; it says in which row, counted from 0.
    """
    start = 0
    try:
        for table in _parquet_tables(file) if where.endswith(".parquet") else _json_tables(file):
            _check_choices(table, where, start)
            yield table.select(CHOICE_COLUMNS).cast(_CHOICES)
            start += len(table)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"It cannot be read ({error}).", where=where, fix="Write one JSON object a line.") from None


def _parquet_tables(file: BinaryIO) -> Iterator[pa.Table]:
    for batch in pq.ParquetFile(file).iter_batches(batch_size=_ROWS):
        yield pa.Table.from_batches([batch])


def _json_tables(file: BinaryIO) -> Iterator[pa.Table]:
    lines = (line for line in io.TextIOWrapper(file, encoding="utf-8") if line.strip())
    while chunk := list(itertools.islice(lines, _ROWS)):
        rows = [row if isinstance(row, dict) else {} for row in map(json.loads, chunk)]
        # A value that is no text becomes a missing one, which is told with its row.
        texts = {name: [row[name] if isinstance(row.get(name), str) else None for row in rows] for name in CHOICE_COLUMNS}
        yield pa.table(texts, schema=_CHOICES)


def _check_choices(table: pa.Table, where: str, start: int) -> None:
    for name in CHOICE_COLUMNS:
        row = 0
        if name in table.column_names and is_text(table.schema.field(name).type):
            row = pc.index(pc.is_null(table[name]), True).as_py()
        if row >= 0:
            raise DataError(
                f"There is no text {name!r}.", where=f"{where}, row {start + row}", fix=f"Give {', '.join(CHOICE_COLUMNS)}."
            )
    check_texts([table], CHOICE_COLUMNS, where=where, start=start)
    row = pc.index(pc.equal(table["chosen"], table["rejected"]), True).as_py()
    if row >= 0:
        raise DataError("chosen and rejected are the same text.", where=f"{where}, row {start + row}", fix="Drop the row.")


def write_onboarded(path: Path, embeddings: Mapping[str, Tensor], *, bundle: str, counts: Mapping[str, int]) -> None:
    """Writes onboarded users, atomically. Embeddings mean something under one bundle alone, which the file names."""
    users = {user: {"comparisons": counts[user], "embedding": embedding.tolist()} for user, embedding in embeddings.items()}
    write_json(path, {"bundle": bundle, "users": users})


def onboarded_table(embeddings: Mapping[str, Tensor], counts: Mapping[str, int]) -> pa.Table:
    """Onboarded users as rows: user_id, comparisons (their number) and embedding (D,). For many users."""
    users = list(embeddings)
    flat = torch.stack([embeddings[user] for user in users]).numpy().astype(np.float32)
    return pa.table(
        {
            "user_id": pa.array(users, pa.string()),
            "comparisons": pa.array([counts[user] for user in users], pa.int32()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1]),
        }
    )


def list_onboarded(location: Location) -> list[Path]:
    """The files of onboarded users at a location: itself, or a folder's `users-*.parquet`.

    Raises:
        ArtifactError: There is none.
    """
    path = local_copy(location)
    files = sorted(path.glob("users-*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ArtifactError("There are no onboarded users here.", where=str(location), fix="Make them with `penchant onboard`.")
    return files


def read_onboarded(location: Location, *, bundle: str) -> dict[str, Tensor]:
    """Embeddings by user, from the JSON that `penchant onboard` wrote, or a folder that the job `onboard` wrote.

    Raises:
        ArtifactError: Not such a file, or one of another bundle.
    """
    embeddings: dict[str, Tensor] = {}
    for file in list_onboarded(location):
        found, users = _read_table(file) if file.suffix == ".parquet" else _read_json(file)
        if found != bundle:
            raise ArtifactError(
                f"Its users were onboarded under bundle {found!r}; this is {bundle!r}.",
                where=str(file),
                fix="Onboard them again under this bundle.",
            )
        embeddings |= users
    return embeddings


def _read_json(path: Path) -> tuple[str | None, dict[str, Tensor]]:
    values = read_json(path)
    if not isinstance(values, dict) or "users" not in values:
        raise ArtifactError("It holds no onboarded users.", where=str(path), fix="Make it with `penchant onboard`.")
    try:
        users = {user: torch.tensor(record["embedding"], dtype=torch.float32) for user, record in values["users"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"One of its users has no embedding ({type(error).__name__}: {str(error)[:100]})."
        raise ArtifactError(what, where=str(path), fix="Make it again.") from None
    shapes = {tuple(embedding.shape) for embedding in users.values()}
    if any(len(shape) != 1 for shape in shapes) or len(shapes) > 1:
        what = f"Its embeddings have the shapes {sorted(shapes)[:5]}, not one (D,)."
        raise ArtifactError(what, where=str(path), fix="Make it again.")
    return values.get("bundle"), users


def _read_table(path: Path) -> tuple[str | None, dict[str, Tensor]]:
    try:
        table = pq.read_table(path)
        said = json.loads((table.schema.metadata or {})[b"penchant"])
        column = table["embedding"].combine_chunks()
        embedding_UD = torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1).copy())
        users = table["user_id"].to_pylist()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ArtifactError(f"It holds no onboarded users ({error}).", where=str(path), fix="Make it again.") from None
    return said.get("bundle"), dict(zip(users, embedding_UD, strict=True))
