"""Where things lie: local paths and URIs, the filesystem behind a URI, and what its failures mean."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
from pyarrow.fs import FileSystem, LocalFileSystem

from penchant.errors import ConfigError, PenchantError, StorageError

Location = str | Path
"""A local path, or a URI."""

_LOCAL_FAULTS = {errno.ENOSPC, errno.EDQUOT}


def default_cache_folder() -> Path:
    """Where caches live: `$PENCHANT_CACHE`, else `$XDG_CACHE_HOME/penchant`, else `~/.cache/penchant`."""
    chosen = os.environ.get("PENCHANT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penchant"


def is_remote(location: Location) -> bool:
    """Whether a location is a URI."""
    return "://" in str(location)


def absolute(location: Location) -> str:
    """The location as another process finds it, whatever its working folder."""
    return str(location) if is_remote(location) else str(Path(location).resolve())


def join(location: Location, *names: str) -> str:
    """The location of something in a folder; a URI's query stays at its end."""
    if not is_remote(location):
        return str(Path(location, *names))
    parts = urlsplit(str(location))
    return urlunsplit(parts._replace(path="/".join([parts.path.rstrip("/"), *names])))


def open_location(location: Location) -> tuple[FileSystem, str]:
    """The filesystem that holds a location, and the path in it.

    Raises:
        ConfigError, StorageError: As `open_filesystem`.
    """
    if is_remote(location):
        return open_filesystem(str(location))
    return LocalFileSystem(), str(Path(location).resolve())


@functools.lru_cache(maxsize=256)
def open_filesystem(uri: str) -> tuple[FileSystem, str]:
    """The filesystem behind a URI, and the path in it.

    Raises:
        ConfigError: The URI is not one that can be used, or holds a password.
        StorageError: The store cannot be reached.
    """
    if urlsplit(uri).password:
        # It would stand in logs, in settings and in error messages.
        shown = uri.replace(f"{urlsplit(uri).username}:{urlsplit(uri).password}@", "***@")
        raise ConfigError("The URI holds a secret.", where=shown, fix="Give it in the environment, as AWS_SECRET_ACCESS_KEY.")
    try:
        with explain_storage_errors(uri):
            filesystem, path = FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, NotImplementedError) as error:
        raise ConfigError(
            f"It is not a place that can be reached ({_first_line(error)}).", where=uri, fix="Give s3://bucket/path, for example."
        ) from None
    return filesystem, path.rstrip("/")


@contextlib.contextmanager
def explain_storage_errors(uri: str) -> Iterator[None]:
    """Turns what the store's client raises into a `StorageError` that says what to do."""
    try:
        yield
    except PenchantError:
        raise
    except OSError as error:
        text = str(error)
        if error.filename is not None or error.errno in _LOCAL_FAULTS:
            raise  # the local disk's, not the store's
        for what, fix, signs in _REASONS:
            if any(sign in text for sign in signs):
                raise StorageError(f"{what} ({_first_line(error)})", where=uri, fix=fix) from error
        raise StorageError(f"The storage failed. ({_first_line(error)})", where=uri, fix="Try again.") from error


_REASONS = (
    (
        "There is no such bucket.",
        "Check the name, or make the bucket.",
        ("NO_SUCH_BUCKET", "Bucket '", "bucket does not exist"),
    ),
    (
        "The storage refuses these credentials, or there are none.",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and check what they may do there.",
        ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "INVALID_CLIENT_TOKEN", "SIGNATURE_DOES_NOT_MATCH", "EXPIRED_TOKEN",
         "UNRECOGNIZED_CLIENT", "HTTP status 401", "HTTP status 403", "redentials", "PERMISSION_DENIED"),
    ),
    (
        "The storage cannot be reached.",
        "Check the network, and the endpoint (AWS_ENDPOINT_URL).",
        ("NETWORK_CONNECTION", "curlCode", "REQUEST_TIMEOUT", "UNAVAILABLE", "timed out", "onnection refused"),
    ),
)  # fmt: skip


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
