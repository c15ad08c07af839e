"""A folder that one process writes and others may go on with: local, or at a URI with a local mirror in the cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from penchant.artifacts import fingerprint, write_text
from penchant.errors import OutputError
from penchant.storage.folders import publish, pull, read_bytes, sizes, upload
from penchant.storage.locations import Location, default_cache_folder, is_remote, join


class MirroredFolder:
    """An --out folder. Its owner works in `path`; where that is a mirror, what others are to find has to be shared.

    Args:
        where: The folder, or its URI.
        identity: The file that says what the folder holds. Where it is not among what is there, the folder is somebody else's.
        growing: Files, or folders (with `/`), that only grow: of the mirror's and the URI's the longer one is the newer one.

    Raises:
        OutputError: Something else is there.
        StorageError: The URI cannot be reached.
    """

    def __init__(self, where: Location, *, identity: str, growing: Iterable[str]) -> None:
        self.uri = str(where) if is_remote(where) else None
        """Where the folder lies, if it is remote."""
        self.path = Path(where).resolve() if self.uri is None else _mirror(self.uri)
        """The local folder: itself, or its mirror."""
        self._published: dict[str, dict[str, str]] = {}
        if self.uri is not None:
            self._take_up(self.uri, identity, tuple(growing))
        if not (self.path / identity).is_file() and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise _foreign(str(where), identity)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Another machine has its cache elsewhere."""
        vars(self).update(state)
        if self.uri is not None:
            self.path = _mirror(self.uri)

    def _take_up(self, uri: str, identity: str, growing: tuple[str, ...]) -> None:
        """Makes the mirror follow what is there, which another machine may have gone on with, or somebody removed."""
        there = sizes(uri)
        if identity not in there:
            if there:
                raise _foreign(uri, identity)
            shutil.rmtree(self.path, ignore_errors=True)
            return
        self._fetch(identity)
        for name, size in there.items():
            local = self.path / name
            grows = any(name == own or (own.endswith("/") and name.startswith(own)) for own in growing)
            if grows and not (local.is_file() and local.stat().st_size >= size):
                self._fetch(name)

    def _fetch(self, name: str) -> None:
        write_text(self.path / name, (read_bytes(self.location(name)) or b"").decode())

    def location(self, name: str) -> str:
        """Where everybody finds something of the folder: a path, or a URI."""
        return str(self.path / name) if self.uri is None else join(self.uri, name)

    def share(self, *names: str) -> None:
        """Publishes files or folders, where the folder is remote.

        Raises:
            StorageError: They cannot be written there.
        """
        if self.uri is None:
            return
        for name in names:
            local = self.path / name
            if local.is_dir():
                self._published[name] = publish(local, join(self.uri, name))
            elif local.is_file():
                upload(local, join(self.uri, name))

    def bring(self, name: str) -> bool:
        """Makes a folder lie here as it was published; False where this one is remote and it was not."""
        if self.uri is None:
            return True
        index = pull(join(self.uri, name), self.path / name, known=self._published.get(name))
        if index is not None:
            self._published[name] = index
        return index is not None


def _mirror(uri: str) -> Path:
    return default_cache_folder().resolve() / "runs" / fingerprint(uri)[:16]


def _foreign(where: str, identity: str) -> OutputError:
    return OutputError(
        f"It is not empty, and holds no {identity}: it is not one of penchant's.", where=where, fix="Choose another --out folder."
    )
