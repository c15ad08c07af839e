"""Files of a store: list, read, write, and copy in both directions."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from penchant.errors import StorageError
from penchant.storage.locations import explain_storage_errors

_FLAT = {"s3", "gcs", "abfs"}
"""Stores of objects: they have no folders to make."""
_THREADS = 8
_CHUNK_BYTES = 8 * 2**20


def list_files(filesystem: FileSystem, root: str) -> dict[str, FileInfo]:
    """Every file below a path, by relative path; empty where there is nothing."""
    found = filesystem.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
    return {info.path[len(root) :].lstrip("/"): info for info in found if info.is_file}


def read_file(filesystem: FileSystem, path: str) -> bytes | None:
    """A small file, or None where there is none."""
    if filesystem.get_file_info(path).type != FileType.File:
        return None
    with filesystem.open_input_stream(path) as stream:
        content: bytes = stream.read()
    return content


def write_file(filesystem: FileSystem, path: str, content: bytes) -> None:
    """Writes a small file."""
    _make_parent(filesystem, path)
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)


def _make_parent(filesystem: FileSystem, path: str) -> None:
    if filesystem.type_name not in _FLAT:
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)


def upload_files(folder: Path, names: Iterable[str], filesystem: FileSystem, root: str) -> None:
    """Sends files of a folder, several at a time."""

    def send(name: str) -> None:
        path = f"{root}/{name}"
        _make_parent(filesystem, path)
        with (folder / name).open("rb") as source, filesystem.open_output_stream(path) as stream:
            shutil.copyfileobj(source, stream, _CHUNK_BYTES)

    _in_threads(send, names)


def download_files(uri: str, place: tuple[FileSystem, str], names: Iterable[str], folder: Path) -> None:
    """Brings files into a folder, several at a time.

    Raises:
        StorageError: One is not there, or its name leads out of the folder.
    """
    filesystem, root = place

    def bring(name: str) -> None:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise StorageError(f"{name!r} lies outside the folder.", where=uri, fix="Remove it.")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with explain_storage_errors(uri), filesystem.open_input_stream(f"{root}/{name}") as stream, target.open("wb") as file:
            shutil.copyfileobj(stream, file, _CHUNK_BYTES)

    _in_threads(bring, names)


def _in_threads(work: Callable[[str], Any], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(work, list(names)):
            pass
