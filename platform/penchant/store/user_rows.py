"""The row that stands for a user: whoever changes anything of a user holds its lock."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, insert

from penchant.store.database import Database
from penchant.store.tables import comparisons, now, users
from penchant.store.values import digest


def lock_user(database: Database, connection: Connection, tenant: str, user: str) -> Row[Any]:
    """Locks a user's row until the transaction ends, and makes it if need be: writers of one user take turns.

    Returns:
        The row's comparisons (how many) and whether the user is forgotten.
    """
    instant = now()
    row = database.insert(users).values(
        user_key=digest(tenant, user),
        tenant=tenant,
        user_id=user,
        version=0,
        comparisons=0,
        forgotten=False,
        created=instant,
        updated=instant,
    )
    # Somebody forgotten gets their name back.
    locked = row.on_conflict_do_update(
        index_elements=[users.c.user_key], set_={"tenant": row.excluded.tenant, "user_id": row.excluded.user_id}
    )
    return connection.execute(locked.returning(users.c.comparisons, users.c.forgotten)).one()


def remove_user(database: Database, connection: Connection, user_key: bytes, *, remember: bool) -> None:
    """Deletes a locked user's row, and with it all that refers to it: comparisons, embeddings and receipts.

    Args:
        database: For a new version.
        connection: In the transaction that holds the lock.
        user_key: The user's.
        remember: Leave a row with the digest alone, which says that the user was forgotten.
    """
    connection.execute(delete(users).where(users.c.user_key == user_key))
    if remember:
        instant, version = now(), database.next_identifier(connection, comparisons)
        connection.execute(
            insert(users).values(
                user_key=user_key, version=version, comparisons=0, forgotten=True, created=instant, updated=instant
            )
        )
