"""What a database's failures mean to a person. Nothing of a URL's password, of a text or of a statement's parameters is told."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from penchant.errors import StoreError

_BUSY = ("Others are writing to it, and it did not become free in time.", "Try again.")
_SLOW = ("It took too long and was stopped.", "Try again; if it stays so, look at the load of the database.")
_FULL = ("The disk is full; nothing was stored.", "Free some space and try again.")
_READ_ONLY = ("It cannot be written.", "Give this process the right to write to the database and, for SQLite, to its folder.")
_GONE = (
    "It does not answer, or refuses the connection.",
    "Check that it runs, and the host, port, user and password in the URL.",
)

_SQLITE = {
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_PERM: _READ_ONLY,
    sqlite3.SQLITE_AUTH: _READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: (
        "The file cannot be opened.",
        "Check that it is there, and that this process may write to its folder.",
    ),
    sqlite3.SQLITE_IOERR: ("The disk failed or is full; nothing was stored.", "Look at the disk, then try again."),
    sqlite3.SQLITE_NOTADB: ("The file is no SQLite database.", "Give another path."),
    sqlite3.SQLITE_CORRUPT: ("The file is damaged.", "Restore it from a copy."),
}
_POSTGRES = {
    "08": _GONE,
    "57": _GONE,
    "25": _READ_ONLY,
    "40": _BUSY,
    "42501": ("The database user lacks a right.", "Grant it the rights to create, read and write tables here."),
    "53100": _FULL,
    "53": ("The server has run out of connections or memory.", "Try again; if it stays so, raise its limits."),
    "55": _BUSY,
    "57014": _SLOW,
}
_UNKNOWN = ("It failed.", "Look into the database's own log.")


@contextlib.contextmanager
def explain_failures(where: str) -> Iterator[None]:
    """Turns a failure of the database into a `StoreError`.

    The driver's error is not chained to it: its message may quote what was stored.
    """
    try:
        yield
    except PoolTimeoutError:
        raise StoreError("All connections to it are in use.", where=where, fix="Try again.") from None
    except DBAPIError as error:
        raise _explain(error, where) from None


def _explain(error: DBAPIError, where: str) -> StoreError:
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorname", None)
        # The low byte of an extended code is the plain one.
        what, fix = _SQLITE.get(getattr(error.orig, "sqlite_errorcode", 0) & 0xFF, _UNKNOWN)
    else:
        code = getattr(error.orig, "sqlstate", None)
        # A connection that never came to be, or broke, has no state.
        what, fix = _POSTGRES.get(code) or _POSTGRES.get(code[:2], _UNKNOWN) if code else _GONE
    return StoreError(what, where=where, fix=f"{fix} ({code or type(error.orig).__name__})")
