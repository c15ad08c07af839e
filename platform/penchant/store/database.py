"""The database behind the store: SQLite in a file, or PostgreSQL. Which one it is matters here and in `engines` alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from penchant.errors import ConfigError, StoreError
from penchant.store.engines import SQLiteFile, postgres_engine, sqlite_engine
from penchant.store.failures import explain_failures

_SCHEMA_LOCK = 0x70656E6368616E74
"""The advisory lock on PostgreSQL under which the schema is made: "penchant" in ASCII."""


class Database:
    """Connections, transactions, and the few statements that SQLite and PostgreSQL say differently.

    Args:
        url: `sqlite:///path` or `postgresql://user:password@host/database`.

    Raises:
        ConfigError: Not such a URL, or psycopg is missing for it.
        OutputError: SQLite's file cannot be made.
    """

    where: str
    """What errors call the database: never with its password."""

    def __init__(self, url: str) -> None:
        try:
            address = make_url(url)
        except (ArgumentError, ValueError):
            # Neither the URL nor the parser's message is told: a password may be in either.
            raise ConfigError("It is not a database URL.", where="the store's URL", fix=_FORMS) from None
        self._file: SQLiteFile | None = None
        self._to_erase = False
        self._turn: AbstractContextManager[Any] = contextlib.nullcontext()
        self._engine: Engine
        if address.drivername in ("sqlite", "sqlite+pysqlite"):
            self._file, self._engine = sqlite_engine(address)
            self.where = str(self._file.path)
            # SQLite has one writer and no queue: who waits asks again now and then, and may be unlucky for long.
            self._turn = threading.Lock()
            self._reader = self._engine
        elif address.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
            self._engine = postgres_engine(address)
            port = f":{address.port}" if address.port else ""
            self.where = f"postgresql://{address.host or ''}{port}/{address.database or ''}"
            # One statement is a transaction of its own: no round trips for BEGIN and ROLLBACK.
            self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        else:
            raise ConfigError(f"The store cannot use {address.drivername!r}.", where="the store's URL", fix=_FORMS)
        self._writer = self._engine.execution_options(writes=True)

    @property
    def is_local(self) -> bool:
        """Whether it is a file on this machine."""
        return self._file is not None

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """For one statement that reads.

        Raises:
            StoreError: The database failed.
        """
        with explain_failures(self.where), self._reader.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def streaming(self) -> Iterator[Connection]:
        """For one statement that reads much: in chunks, all from one snapshot, for as long as it takes."""
        with explain_failures(self.where), self._engine.connect() as connection:
            self.take_your_time(connection)
            yield connection.execution_options(stream_results=True, yield_per=1000)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction: committed when the block ends, undone where it raises.

        Raises:
            StoreError: The database failed, and nothing of the transaction is stored (or, where the connection broke during the
                commit, it is unknown whether it is: idempotency keys are for that).
        """
        with explain_failures(self.where), self._turn, self._writer.begin() as connection:
            if self._file is not None and self._file.is_gone():
                raise StoreError("The file was removed or replaced.", where=self.where, fix="Put it back and start again.")
            yield connection
        if self._to_erase:
            self.erase_deleted()

    def insert(self, table: Table) -> Any:
        """An INSERT that knows ON CONFLICT."""
        return postgresql.insert(table) if self._file is None else sqlite.insert(table)

    def next_identifier(self, connection: Connection, table: Table) -> int:
        """Takes the next id of a table, which no row of it will ever have."""
        if self._file is None:
            return connection.execute(select(func.nextval(func.pg_get_serial_sequence(table.name, "id")))).scalar_one()
        # Where AUTOINCREMENT keeps the highest id so far; the first migration made the row.
        taken = text("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = :table RETURNING seq")
        return connection.execute(taken, {"table": table.name}).scalar_one()

    def lock_schema(self, connection: Connection) -> None:
        """Lets one process at a time change the schema, until its transaction ends. (On SQLite every writer is alone anyway.)"""
        self.take_your_time(connection)
        if self._file is None:
            connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))

    def check_encoding(self, connection: Connection) -> None:
        """Refuses a PostgreSQL database that cannot hold every text.

        Raises:
            ConfigError: Its encoding is not UTF8.
        """
        if self._file is None and (encoding := connection.execute(text("SHOW server_encoding")).scalar_one()) != "UTF8":
            raise ConfigError(f"Its encoding is {encoding}, not UTF8.", where=self.where, fix="Create it with ENCODING 'UTF8'.")

    def take_your_time(self, connection: Connection) -> None:
        """Lifts the limit on how long a statement may run, for this transaction."""
        if self._file is None:
            connection.execute(text("SET LOCAL statement_timeout = 0"))

    def erase_deleted(self) -> None:
        """Folds SQLite's log into the file, where deleted bytes are zeros by then, and empties the log.

        Where that cannot be done just then (somebody reads), it is tried again after each transaction that writes.
        PostgreSQL's vacuum does the like in its own time.
        """
        if self._file is None:
            return
        self._to_erase = True
        # What was written is committed: it does not fail for this.
        with (
            contextlib.suppress(StoreError),
            explain_failures(self.where),
            self._turn,
            contextlib.closing(self._engine.raw_connection()) as connection,
        ):
            self._to_erase = not self._file.empty_log(connection.driver_connection)


_FORMS = "Give sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE."
