"""The tables. `migrations/versions` makes them; a test holds the two against each other.

A user is found by `user_key`, a digest of tenant and id: it is short whatever the id, and it is all that is left of a user
who was forgotten. Everything about a user refers to that row and goes with it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator


class Instant(TypeDecorator[datetime]):
    """An instant in UTC, also where the database (SQLite) knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """To UTC; every caller has checked that there is a time zone."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """From UTC, or from the time zone of PostgreSQL's session."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    """The present instant. It is kept for people and for `prune`: nothing is ordered by it."""
    return datetime.now(UTC)


Identifier = BigInteger().with_variant(Integer, "sqlite")
"""Counts up and is never used again: SQLite does so (AUTOINCREMENT) for INTEGER alone."""

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_index",
        "uq": "%(table_name)s_%(column_0_N_name)s_unique",
    }
)


def _user_key(**options: Any) -> Column[bytes]:
    return Column("user_key", LargeBinary, ForeignKey("users.user_key", ondelete="CASCADE"), nullable=False, **options)


users = Table(
    "users",
    metadata,
    Column("user_key", LargeBinary, primary_key=True),
    # Both are null in what is left of a forgotten user.
    Column("tenant", Text),
    Column("user_id", Text),
    Column("version", BigInteger, nullable=False),
    Column("comparisons", Integer, nullable=False),
    Column("forgotten", Boolean, nullable=False),
    Column("created", Instant, nullable=False),
    Column("updated", Instant, nullable=False),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", Identifier, primary_key=True),
    _user_key(),
    # The same for a choice and its reverse; with it the index alone tells which of a user's comparisons count.
    Column("pair", LargeBinary, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("chosen", Text, nullable=False),
    Column("rejected", Text, nullable=False),
    Column("created", Instant, nullable=False),
    Index(None, "user_key", "pair", "id"),
    sqlite_autoincrement=True,
)

embeddings = Table(
    "embeddings",
    metadata,
    _user_key(primary_key=True),
    Column("bundle", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    # float32, little-endian.
    Column("embedding", LargeBinary, nullable=False),
)

receipts = Table(
    "receipts",
    metadata,
    # Digest of the tenant and the client's idempotency key.
    Column("receipt_key", LargeBinary, primary_key=True),
    _user_key(index=True),
    Column("body", LargeBinary, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("comparisons", Integer, nullable=False),
    Column("created", Instant, nullable=False),
)

access_keys = Table(
    "access_keys",
    metadata,
    Column("id", Identifier, primary_key=True),
    # sha256, hex. The secret itself is nowhere.
    Column("secret", String(64), nullable=False, unique=True),
    Column("tenant", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("created", Instant, nullable=False),
    Column("expires", Instant),
    Column("revoked", Instant),
    sqlite_autoincrement=True,
)
