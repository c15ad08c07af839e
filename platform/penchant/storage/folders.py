"""Folders in object stores: whatever pyarrow's filesystems reach (s3://, gs://, abfs://, hdfs://).

A *location* is a local path or a URI. Work is done in local folders: `local_copy` brings a location's content to this machine,
and `publish` makes a location hold what a local folder holds. An object store cannot replace a folder at once; so a published
folder has an index (`files.json`, the sha256 of every other file) that is taken away first and written last, and a copy counts
only if it is what the index says. A reader sees a whole folder or an error, never a part.

The endpoint, region and credentials come from the environment, as the store's own tools read them (AWS_ENDPOINT_URL,
AWS_REGION, AWS_ACCESS_KEY_ID, ...) or, but for credentials, from the URI's query (s3://bucket/path?region=eu-west-1).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from pyarrow.fs import FileInfo, FileSystem, FileType

from penchant.artifacts import explain_disk_errors, file_fingerprint, fingerprint, replace_folder
from penchant.errors import StorageError
from penchant.storage.files import download_files, list_files, read_file, upload_files, write_file
from penchant.storage.locations import Location, default_cache_folder, explain_storage_errors, is_remote, open_filesystem

INDEX = "files.json"


def local_copy(location: Location) -> Path:
    """The path of a location's content on this machine: itself, or a checked copy in the cache, made once for each content.

    Raises:
        StorageError: There is nothing there, it changed meanwhile, or it cannot be reached.
        OutputError: The disk is full.
    """
    if not is_remote(location):
        return Path(location)
    uri = str(location)
    with explain_storage_errors(uri):
        filesystem, root = open_filesystem(uri)
        is_file = filesystem.get_file_info(root).type == FileType.File
        folder, _, name = root.rpartition("/") if is_file else (root, "", "")
        listing = {name: filesystem.get_file_info(root)} if is_file else list_files(filesystem, root)
        if not listing:
            raise StorageError("There is nothing there.", where=uri, fix="Check the bucket and the path.")
        expected = _read_index(filesystem, folder) if INDEX in listing and not is_file else None
    content = expected or sorted((file, info.size, info.mtime_ns) for file, info in listing.items())
    copy = default_cache_folder() / "remote" / fingerprint(uri)[:16] / fingerprint(content)[:16]
    with _one_at_a_time(copy):
        if not copy.is_dir():
            with replace_folder(copy) as draft:
                download_files(uri, (filesystem, folder), listing if expected is None else expected, draft)
                _check(draft, expected, listing, uri)
    return copy / name


def pull(uri: str, folder: Path, *, known: dict[str, str] | None = None) -> dict[str, str] | None:
    """Makes a local folder hold what is published at a URI; returns its index, or None where nothing is published.

    Args:
        known: The index of what the folder is known to hold.
    """
    with explain_storage_errors(uri):
        filesystem, root = open_filesystem(uri)
        index = _read_index(filesystem, root)
    if index is None or index == known or (folder.is_dir() and digests(folder) == index):
        return index
    with replace_folder(folder) as draft:
        download_files(uri, (filesystem, root), index, draft)
        _check(draft, index, {}, uri)
    return index


def publish(folder: Path, uri: str) -> dict[str, str]:
    """Makes a URI hold what a local folder holds; returns the index. What is there already is not sent again.

    Raises:
        StorageError: It cannot be written there.
    """
    files = digests(folder)
    with explain_storage_errors(uri):
        filesystem, root = open_filesystem(uri)
        listing, before = list_files(filesystem, root), _read_index(filesystem, root)
        if before is not None:
            if before == files:
                return files
            filesystem.delete_file(f"{root}/{INDEX}")
        known = before or {}
        changed = [name for name, digest in files.items() if known.get(name) != digest or name not in listing]
        upload_files(folder, changed, filesystem, root)
        # Only what was published: whatever else lies there is not ours.
        for name in known.keys() - files.keys():
            if name in listing:
                filesystem.delete_file(f"{root}/{name}")
        write_file(filesystem, f"{root}/{INDEX}", json.dumps(files, indent=2).encode())
    return files


def add_files(folder: Path, uri: str) -> None:
    """Adds a local folder's files to those at a URI. Several processes may do it at once.

    Raises:
        StorageError: They cannot be written there.
    """
    with explain_storage_errors(uri):
        upload_files(folder, _names(folder), *open_filesystem(uri))


def collect_files(uri: str, folder: Path) -> None:
    """Makes a local folder hold the files at a URI, published or added.

    Raises:
        StorageError: They cannot be read.
    """
    with explain_storage_errors(uri):
        filesystem, root = open_filesystem(uri)
        listing = {name: info for name, info in list_files(filesystem, root).items() if name != INDEX}
    with replace_folder(folder) as draft:
        download_files(uri, (filesystem, root), listing, draft)
        _check(draft, None, listing, uri)


@contextlib.contextmanager
def adding_to(location: Location) -> Iterator[Path]:
    """Yields a local folder; the files that are put there are added to the location's.

    Raises:
        StorageError: They cannot be written there.
    """
    if not is_remote(location):
        yield Path(location)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        add_files(Path(folder), str(location))


@contextlib.contextmanager
def replacing(location: Location) -> Iterator[Path]:
    """Yields an empty local folder to fill; on success it takes the place of what is at the location.

    Raises:
        OutputError, StorageError: It cannot be written.
    """
    if not is_remote(location):
        with replace_folder(Path(location)) as draft:
            yield draft
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        publish(Path(folder), str(location))


def upload(file: Path, uri: str) -> None:
    """Copies one file to a URI; readers see the old one or the new.

    Raises:
        StorageError: It cannot be written there.
    """
    with explain_storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        write_file(filesystem, path, file.read_bytes())


def read_bytes(uri: str) -> bytes | None:
    """A small file, or None where there is none."""
    with explain_storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        return read_file(filesystem, path)


def sizes(uri: str) -> dict[str, int]:
    """Bytes of every file below a URI, by relative path; empty where there is nothing."""
    with explain_storage_errors(uri):
        return {name: info.size for name, info in list_files(*open_filesystem(uri)).items()}


def remove(location: Location) -> None:
    """Deletes a folder, or everything below a URI.

    Raises:
        StorageError: It cannot be deleted at the URI. Of a local folder what cannot be deleted stays.
    """
    if not is_remote(location):
        shutil.rmtree(location, ignore_errors=True)
        return
    with explain_storage_errors(str(location)):
        filesystem, root = open_filesystem(str(location))
        if list_files(filesystem, root):
            filesystem.delete_dir(root)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by relative POSIX path."""
    return {name: file_fingerprint(folder / name) for name in _names(folder)}


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files if path != folder / INDEX)


def _read_index(filesystem: FileSystem, root: str) -> dict[str, str] | None:
    content = read_file(filesystem, f"{root}/{INDEX}")
    try:
        return None if content is None else dict(json.loads(content))
    except ValueError:
        raise StorageError(
            "It is not an index.", where=f"{root}/{INDEX}", fix="Remove it, and publish the folder again."
        ) from None


def _check(folder: Path, expected: dict[str, str] | None, listing: dict[str, FileInfo], uri: str) -> None:
    if expected is not None:
        wrong = [name for name, digest in expected.items() if file_fingerprint(folder / name) != digest]
    else:
        wrong = [name for name, info in listing.items() if (folder / name).stat().st_size != info.size]
    if wrong:
        raise StorageError(
            f"{wrong[0]} is not the file that was published.",
            where=uri,
            fix="Somebody may be writing it: try again; if it stays so, publish it again.",
        )


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Processes of one machine that want the same copy wait for the one that makes it."""
    with explain_disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            yield
