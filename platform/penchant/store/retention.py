"""Deletes what is too old to be kept."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, delete, func, select, update

from penchant.store.database import Database
from penchant.store.tables import comparisons, embeddings, now, receipts, users
from penchant.store.user_rows import remove_user

_USERS_AT_ONCE = 200
"""Users in one transaction: few enough that nobody waits long for it."""


def prune(database: Database, older_than: datetime) -> int:
    """Deletes older comparisons, user by user, and what was derived from them; returns how many comparisons went.

    Where it is interrupted, the users that it came to are done and the others untouched.
    """
    deleted, last = 0, b""
    while True:
        with database.writing() as connection:
            database.take_your_time(connection)
            user_keys = _next_users(connection, older_than, last)
            if not user_keys:
                connection.execute(delete(receipts).where(receipts.c.created < older_than))
                break
            deleted += _prune_users(database, connection, older_than, user_keys)
        last = user_keys[-1]
    return deleted


def _next_users(connection: Connection, older_than: datetime, last: bytes) -> list[bytes]:
    """Users with a comparison that is too old, in the order of their keys."""
    found = select(comparisons.c.user_key).distinct()
    found = found.where(comparisons.c.user_key > last, comparisons.c.created < older_than)
    return list(connection.scalars(found.order_by(comparisons.c.user_key).limit(_USERS_AT_ONCE)))


def _prune_users(database: Database, connection: Connection, older_than: datetime, user_keys: list[bytes]) -> int:
    # Every row is locked before anything is deleted, always in the same order: nobody waits for us who holds what we wait for.
    locked = select(users.c.user_key, users.c.forgotten).where(users.c.user_key.in_(user_keys))
    found = connection.execute(locked.order_by(users.c.user_key).with_for_update()).all()
    theirs = comparisons.c.user_key.in_(user_keys)
    deleted = connection.execute(delete(comparisons).where(theirs, comparisons.c.created < older_than)).rowcount
    connection.execute(delete(embeddings).where(embeddings.c.user_key.in_(user_keys)))
    count = select(comparisons.c.user_key, func.count()).where(theirs).group_by(comparisons.c.user_key)
    left: dict[bytes, int] = dict(connection.execute(count).tuples().all())
    for user_key, forgotten in found:
        if user_key in left:
            state = {
                "version": database.next_identifier(connection, comparisons),
                "comparisons": left[user_key],
                "updated": now(),
            }
            connection.execute(update(users).where(users.c.user_key == user_key).values(state))
        else:
            remove_user(database, connection, user_key, remember=forgotten)
    return deleted
