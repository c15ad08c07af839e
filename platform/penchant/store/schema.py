"""Makes the tables of a new store, and brings those of an older one up to date: Alembic, run on a connection of ours."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from penchant.errors import StoreError
from penchant.store.database import Database

VERSION_TABLE = "penchant_schema"
"""Not Alembic's own name, which another application in the same PostgreSQL database may use."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_ONE_AT_A_TIME = threading.Lock()
"""Alembic keeps the running migration in its modules: two threads would get in each other's way."""


def upgrade(database: Database) -> None:
    """Brings the schema up to date. Any number of processes may do so at once: one does it, the others find it done.

    Raises:
        StoreError: The schema is newer than this code, or the database failed.
        ConfigError: A PostgreSQL database that cannot hold every text.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with database.reading() as connection:
        if _is_current(connection, config, database.where):
            return
    with _ONE_AT_A_TIME, database.writing() as connection:
        database.check_encoding(connection)
        database.lock_schema(connection)
        if not _is_current(connection, config, database.where):
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _is_current(connection: Connection, config: Config, where: str) -> bool:
    script = ScriptDirectory.from_config(config)
    known = {revision.revision for revision in script.walk_revisions()}
    found = set(MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads())
    if found - known:
        raise StoreError(
            f"The store has schema {', '.join(sorted(found - known))}, which this penchant does not know.",
            where=where,
            fix="It was written by a newer penchant: upgrade this one.",
        )
    return found == set(script.get_heads())
