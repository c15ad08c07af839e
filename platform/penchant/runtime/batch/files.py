"""Files of batch work: what comes in, what is done already, and writing whole or not at all.

A place is a local path or the URI of a filesystem that pyarrow knows. Each file of a result carries a stamp: the fingerprint of
what it was made from. A file with the right stamp is not made again.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from penchant.artifacts import explain_disk_errors
from penchant.errors import ConfigError, DataError
from penchant.storage import open_location

_STAMP = b"penchant"
_READ_ROWS = 65_536


@dataclass(frozen=True)
class InputFile:
    """A file below a place."""

    path: str
    """In its filesystem."""
    name: str
    """Below the place; of a single file, its name."""
    version: tuple[int, int]
    """Bytes and time of the last change, in ns: another version of a file is another file."""


def find_files(place: str, suffixes: Sequence[str]) -> list[InputFile]:
    """The files with these suffixes at a place, by name: itself, or all below a folder but hidden ones.

    Raises:
        DataError: There is none.
    """
    filesystem, path = open_location(place)
    info = filesystem.get_file_info(path)
    if info.type == FileType.NotFound:
        raise DataError("There is no such file or folder.", where=place, fix="Check the path.")
    if info.type == FileType.File:
        return [_input(info, info.base_name)]
    found = filesystem.get_file_info(FileSelector(path, recursive=True))
    files = [
        _input(info, info.path[len(path) + 1 :]) for info in found if info.is_file and info.base_name.endswith(tuple(suffixes))
    ]
    files = [file for file in files if not any(part.startswith((".", "_")) for part in file.name.split("/"))]
    if not files:
        raise DataError(f"There is no {' or '.join(suffixes)} file in this folder.", where=place, fix="Check the path.")
    return sorted(files, key=lambda file: file.name)


def _input(info: FileInfo, name: str) -> InputFile:
    return InputFile(info.path, name, (info.size, info.mtime_ns or 0))


def check_apart(inputs: str, out: str) -> None:
    """Checks that results land neither on the inputs nor among them, to be taken for inputs the next time.

    Raises:
        ConfigError: They would.
    """
    filesystem, path = open_location(inputs)
    other, folder = open_location(out)
    if filesystem.type_name != other.type_name:
        return
    is_file = filesystem.get_file_info(path).type == FileType.File
    inside = path.rpartition("/")[0] == folder if is_file else f"{folder}/".startswith(f"{path}/")
    if inside:
        raise ConfigError("The results would lie among the inputs.", where=f"out={out}", fix="Choose another folder.")


def open_parquet(filesystem: FileSystem, path: str) -> pq.ParquetFile:
    """A Parquet file, of which only the footer is read.

    Raises:
        DataError: It is not one.
    """
    try:
        return pq.ParquetFile(filesystem.open_input_file(path))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"It cannot be read ({error}).", where=path, fix="Give a Parquet file.") from None


def read_rows(filesystem: FileSystem, path: str, start: int, stop: int) -> pa.Table:
    """Rows start..stop-1 of a Parquet file; of the others at most a batch is in memory at a time."""
    with contextlib.closing(open_parquet(filesystem, path)) as parquet:
        groups: list[int] = []
        first = behind = 0
        for number in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(number).num_rows
            if behind < stop and behind + rows > start:
                first = behind if not groups else first
                groups.append(number)
            behind += rows
        tables, at = [], first
        for batch in parquet.iter_batches(batch_size=min(_READ_ROWS, stop - start), row_groups=groups):
            low, high = max(start - at, 0), min(stop - at, batch.num_rows)
            if low < high:
                tables.append(batch.slice(low, high - low))
            at += batch.num_rows
        return pa.Table.from_batches(tables, schema=parquet.schema_arrow)


def stamped(schema: pa.Schema, stamp: str, **values: Any) -> pa.Schema:
    """The schema with a stamp, and what else the file says about itself."""
    said = json.dumps({"stamp": stamp, **values}).encode()
    return schema.with_metadata((schema.metadata or {}) | {_STAMP: said})


def has_stamp(filesystem: FileSystem, path: str, stamp: str) -> bool:
    """Whether a whole file with this stamp is there."""
    return read_stamp(filesystem, path) == stamp


def read_stamp(filesystem: FileSystem, path: str) -> str | None:
    """The stamp of a whole file; None where there is none."""
    if filesystem.get_file_info(path).type != FileType.File:
        return None
    try:
        metadata = pq.read_schema(path, filesystem=filesystem).metadata or {}
        stamp: str | None = json.loads(metadata.get(_STAMP, b"{}")).get("stamp")
    except (pa.ArrowException, OSError, ValueError):
        return None  # somebody else's, or cut short: it is made again
    return stamp


@contextlib.contextmanager
def parquet_writer(filesystem: FileSystem, path: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yields a writer; the file stands under its name once the block has ended well, and not before.

    Raises:
        OutputError: The disk is full or the folder may not be written.
    """
    folder, _, name = path.rpartition("/")
    draft = f"{folder}/.{name}.{uuid.uuid4().hex}"
    with explain_disk_errors(Path(path)):
        filesystem.create_dir(folder, recursive=True)
        try:
            with filesystem.open_output_stream(draft) as stream, pq.ParquetWriter(stream, schema) as writer:
                yield writer
            filesystem.move(draft, path)
        except BaseException:
            if filesystem.get_file_info(draft).type == FileType.File:
                filesystem.delete_file(draft)
            raise


def write_table(filesystem: FileSystem, path: str, table: pa.Table, schema: pa.Schema) -> None:
    """Writes a table as a Parquet file under a schema that may say more than the table's."""
    with parquet_writer(filesystem, path, schema) as writer:
        writer.write_table(table)


def join_files(filesystem: FileSystem, parts: Iterable[str], path: str, schema: pa.Schema) -> None:
    """Makes one Parquet file of several, in order; a batch is in memory at a time."""
    with parquet_writer(filesystem, path, schema) as writer:
        for part in parts:
            with contextlib.closing(open_parquet(filesystem, part)) as parquet:
                for batch in parquet.iter_batches(batch_size=_READ_ROWS):
                    writer.write_batch(batch)


def remove_folder(filesystem: FileSystem, path: str) -> None:
    """Removes a folder, if it is there."""
    if filesystem.get_file_info(path).type == FileType.Directory:
        filesystem.delete_dir(path)
