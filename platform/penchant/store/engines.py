"""How each database is opened: what is promised to users (an acknowledged comparison is on disk) rests on these settings."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event

from penchant.errors import ConfigError, OutputError, StoreError

BUSY_SECONDS = 5
"""How long a writer waits for another on SQLite, and how long a connection to PostgreSQL may take."""
STATEMENT_SECONDS = 10
"""How long one statement may take on PostgreSQL, and a request wait for a free connection."""
_POOL: dict[str, Any] = {"pool_size": 8, "max_overflow": 8, "pool_timeout": STATEMENT_SECONDS, "hide_parameters": True}


@dataclass(frozen=True)
class SQLiteFile:
    """The file behind an SQLite engine."""

    path: Path
    identity: tuple[int, int]
    """Device and inode: a file removed under an open connection still takes writes, and loses them."""

    def is_gone(self) -> bool:
        """Whether the path no longer leads to the file that was opened."""
        try:
            return _identity(self.path) != self.identity
        except OSError:
            return True

    def empty_log(self, connection: Any) -> bool:
        """Writes the log (WAL) into the file and truncates it; False where that cannot be done just now."""
        connection.execute("PRAGMA busy_timeout = 0")  # nobody could write while it waited
        try:
            return _checkpoint(connection)
        except sqlite3.Error:
            return False
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")


def sqlite_engine(address: URL) -> tuple[SQLiteFile, Engine]:
    """An engine over a file, which is made (for its owner's eyes alone) if need be.

    Raises:
        ConfigError: In memory (each connection would see another database), or with parameters.
        OutputError: The file cannot be made.
    """
    name = address.database or ""
    if name in ("", ":memory:") or name.startswith("file:") or address.query or address.host:
        raise ConfigError(
            "SQLite needs the plain path of a file (and not memory).",
            where="the store's URL",
            fix="Write sqlite:///folder/users.db, or sqlite:////folder/users.db for a path from the root.",
        )
    if sqlite3.sqlite_version_info < (3, 35):
        raise ConfigError(
            f"This Python has SQLite {sqlite3.sqlite_version}; the store needs 3.35.",
            where="the store's URL",
            fix="Use another Python, or PostgreSQL.",
        )
    path = Path(name).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        file = SQLiteFile(path, _identity(path))
    except OSError as error:
        raise OutputError(
            f"The file cannot be made ({error.strerror}).", where=str(path), fix="Choose a folder that you may write to."
        ) from error
    # mode=rw: a connection never makes a new, empty file in the place of one that was removed.
    url = URL.create("sqlite", database=f"file:{quote(str(path))}", query={"mode": "rw", "uri": "true"})
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, **_POOL)
    # SQLAlchemy's documented way to have real transactions: we say BEGIN, not the driver.
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return file, engine


def postgres_engine(address: URL) -> Engine:
    """An engine over psycopg 3. What the URL itself says about a connection wins.

    Raises:
        ConfigError: psycopg is not installed.
    """
    options = f"-c statement_timeout={STATEMENT_SECONDS}s {address.query.get('options', '')}"
    query = {"connect_timeout": str(BUSY_SECONDS), "application_name": "penchant", **address.query, "options": options.strip()}
    url = address.set(drivername="postgresql+psycopg", query=query)
    try:
        return create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED", **_POOL)
    except ImportError:
        raise ConfigError(
            "PostgreSQL needs the package psycopg.",
            where="the store's URL",
            fix="pip install 'penchant[postgres]'",
        ) from None


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None
    _use_log(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA journal_size_limit = 0")


def _use_log(connection: sqlite3.Connection) -> None:
    """Write-ahead log: readers and the writer do not wait for each other. The file remembers it."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            # On a new file this upgrades a lock, for which SQLite does not wait as it does elsewhere.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise StoreError(
            f"SQLite cannot keep a write-ahead log here (journal mode {mode}).",
            where="the store's file",
            fix="Put it on a local disk, or use PostgreSQL.",
        )


def _begin_sqlite(connection: Connection) -> None:
    # A writer is alone from its first statement: it never has to start again because of what another wrote meanwhile.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _checkpoint(connection: sqlite3.Connection) -> bool:
    busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
