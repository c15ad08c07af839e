"""Rows of data sets as they were published: files or folders that were downloaded, or the Hugging Face hub.

One batch is in memory at a time (but all of a JSON array), and of Parquet and CSV only the columns that are asked for. Nothing is
fetched unless the source says so: `hub:OWNER/NAME`.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TextIO, cast

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from penchant.artifacts import refuse_uri
from penchant.errors import DataError, StorageError

HUB = "hub:"
"""What the name of a data set on the hub begins with."""
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".csv")
"""Files of a folder that are read."""
_BATCH = 1024
_CSV_BLOCK = 1 << 24  # bytes; a row has to fit
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A file of a published data set, or a split of one on the hub."""

    where: str
    """What messages call it."""
    name: str
    """Its path within the data set, such as `helpful-base/train.jsonl.gz`; on the hub `helpful-base/train`."""
    read: Callable[[], Iterator[Row]]
    """Reads it from the start."""

    @property
    def split(self) -> str:
        """The first word of its name: `train` of `data/train-00000-of-00001.parquet`."""
        return re.split(r"[-.]", PurePosixPath(self.name).name)[0]

    @property
    def folder(self) -> str:
        """The name of the folder that it is in."""
        return PurePosixPath(self.name).parent.name

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Each row with where it stands, for messages."""
        for number, row in enumerate(self.read()):
            yield f"{self.where}, row {number}", row


def find_parts(
    source: str,
    *,
    columns: Sequence[str],
    wanted: Callable[[str], bool] = lambda name: True,
    hub_config: str | None = None,
    hub_folders: Sequence[str | None] = (None,),
) -> list[Part]:
    """The files of a data set, in the order of their names, or its splits on the hub.

    Args:
        source: A file, a folder, or `hub:OWNER/NAME`, with `@REVISION` where it is not the newest.
        columns: Those that will be read, where a format can leave others out.
        wanted: Whether a file of a folder belongs to what is read, by its path within the folder.
        hub_config: Configuration of the data set on the hub.
        hub_folders: Folders of it that are loaded one by one.

    Raises:
        DataError: There is no such file or folder, or none of its files can be read; `datasets` is not installed.
        StorageError: The hub refuses, or cannot be reached.
    """
    if source.startswith(HUB):
        return _hub_parts(source, columns, hub_config, hub_folders)
    path = Path(source)
    if path.is_file():
        return [Part(str(path), path.name, lambda: file_rows(path, columns))]
    refuse_uri(path)
    if not path.is_dir():
        raise DataError(
            "There is no such file or folder.", where=source, fix=f"Give one, or {HUB}OWNER/NAME for a data set of the hub."
        )
    files = [file for file in sorted(path.rglob("*")) if file.name.endswith(SUFFIXES) and not file.name.startswith(".")]
    names = [file.relative_to(path).as_posix() for file in files]
    parts = [
        Part(str(file), name, lambda file=file: file_rows(file, columns))  # type: ignore[misc]
        for file, name in zip(files, names, strict=True)
        if wanted(name)
    ]
    if not parts:
        there = ", ".join(names[:8]) or f"no file of {', '.join(SUFFIXES)}"
        raise DataError(
            f"None of its files is one of this data set; it has {there}.",
            where=source,
            fix="Give the folder as it was downloaded, or one file.",
        )
    return parts


def file_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a Parquet, CSV, JSON or JSONL file (.gz: gzip). All values of a CSV are texts, and an empty one is None.

    Raises:
        DataError: The file is missing, of another kind, or damaged; told with its line.
    """
    refuse_uri(path)
    if not path.is_file():
        raise DataError("There is no such file.", where=str(path), fix="Give a JSONL or Parquet file.")
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path, columns)
        elif path.suffix == ".csv":
            yield from _csv_rows(path, columns)
        else:
            open_text = gzip.open if path.suffix == ".gz" else open
            with open_text(path, "rt", encoding="utf-8") as file:
                yield from _json_rows(cast(TextIO, file), str(path))
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        kind = path.suffix.removeprefix(".") or "text"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"It cannot be read as {kind} ({reason}).", where=str(path), fix="It may be cut short: get it again."
        ) from None


def text_of(row: Row, name: str, where: str) -> str:
    """A text of a row, stripped; "" where it is None, which published data has.

    Raises:
        DataError: There is no such field, or it is no text.
    """
    value = value_of(row, name, where)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{name!r} must be a text (got {value!r:.80}).", where=where, fix=_LAYOUT)
    return whole_text(value).strip()


def whole_text(value: Any) -> Any:
    """A text without half surrogate pairs, which JSON can hold and no encoding can; what is no text stays what it is."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def value_of(row: Row, name: str, where: str, kind: type | tuple[type, ...] = object) -> Any:
    """A field of a row, whatever it is or of a kind.

    Raises:
        DataError: There is no such field, or it is of another kind; or the row is no object.
    """
    if not isinstance(row, dict):
        raise DataError(f"It must be an object with {name!r} (got {row!r:.80}).", where=where, fix=_LAYOUT)
    if name not in row:
        raise DataError(f"There is no {name!r}; it has {', '.join(map(str, row)) or 'nothing'}.", where=where, fix=_LAYOUT)
    if not isinstance(row[name], kind):
        names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{name!r} must be {names} (got {row[name]!r:.80}).", where=where, fix=_LAYOUT)
    return row[name]


_LAYOUT = "Give the files as they were published; `--help` says which."


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        there = file.schema_arrow.names
        names = there if columns is None else [name for name in there if name in columns]
        for batch in file.iter_batches(batch_size=_BATCH, columns=names):
            yield from batch.to_pylist()


def _csv_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    names = header if columns is None else [name for name in header if name in columns]
    convert = pa_csv.ConvertOptions(
        include_columns=names,
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    with pa_csv.open_csv(path, pa_csv.ReadOptions(block_size=_CSV_BLOCK), parse_options=parse, convert_options=convert) as reader:
        for batch in reader:
            for start in range(0, batch.num_rows, _BATCH):
                yield from batch.slice(start, _BATCH).to_pylist()


def _json_rows(file: TextIO, where: str) -> Iterator[Row]:
    first = file.read(1)
    file.seek(0)
    if first == "[":
        try:
            rows = json.load(file)
        except json.JSONDecodeError as error:
            raise DataError(f"It is not JSON ({error}).", where=where, fix="It may be cut short: get it again.") from None
        numbered: Iterator[tuple[str, Any]] = ((f"{where}, row {number}", row) for number, row in enumerate(rows))
    else:
        numbered = _json_lines(file, where)
    for place, row in numbered:
        if not isinstance(row, dict):
            raise DataError(f"It is a {type(row).__name__}, not an object.", where=place, fix="Mend it.")
        yield row


def _json_lines(file: TextIO, where: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file):
        if not line.strip():
            continue
        place = f"{where}, line {number + 1}"
        try:
            yield place, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"It is not JSON ({error}).", where=place, fix="Write one object a line.") from None


def _hub_parts(source: str, columns: Sequence[str], config: str | None, folders: Sequence[str | None]) -> list[Part]:
    name, _, revision = source.removeprefix(HUB).partition("@")
    try:
        import datasets
    except ImportError:
        raise DataError(
            "The package `datasets` is not installed.",
            where=source,
            fix="Install it with: pip install 'penchant[hub]'; or download the files, and give their folder.",
        ) from None
    parts = []
    for folder in folders:
        try:
            splits = datasets.load_dataset(name, config, data_dir=folder, revision=revision or None, streaming=True)
        except Exception as error:  # of the network, of the hub, of a data set's own script: it has no common kind
            raise _hub_error(source, error) from None
        for split, rows in splits.items():
            label = f"{folder}/{split}" if folder else split
            parts.append(Part(f"{source} ({label})", label, lambda rows=rows: _hub_rows(source, rows, columns)))  # type: ignore[misc]
    return parts


def _hub_rows(source: str, rows: Any, columns: Sequence[str]) -> Iterator[Row]:
    try:
        for row in rows:
            yield {name: value for name, value in row.items() if name in columns}
    except Exception as error:
        raise _hub_error(source, error) from None


def _hub_error(source: str, error: Exception) -> StorageError:
    reason = (str(error).splitlines() or [""])[0]
    return StorageError(
        f"The hub's data set cannot be loaded ({type(error).__name__}: {reason}).",
        where=source,
        fix="Check its name and the network, and log in where it is gated; or download the files, and give their folder.",
    )
