"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_IDENTIFIER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Makes every table."""
    op.create_table(
        "users",
        sa.Column("user_key", sa.LargeBinary, primary_key=True),
        sa.Column("tenant", sa.Text),
        sa.Column("user_id", sa.Text),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("comparisons", sa.Integer, nullable=False),
        sa.Column("forgotten", sa.Boolean, nullable=False),
        sa.Column("created", _INSTANT, nullable=False),
        sa.Column("updated", _INSTANT, nullable=False),
    )
    op.create_table(
        "comparisons",
        sa.Column("id", _IDENTIFIER, primary_key=True),
        _user_key(),
        sa.Column("pair", sa.LargeBinary, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("chosen", sa.Text, nullable=False),
        sa.Column("rejected", sa.Text, nullable=False),
        sa.Column("created", _INSTANT, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("comparisons_user_key_pair_id_index", "comparisons", ["user_key", "pair", "id"])
    op.create_table(
        "embeddings",
        _user_key(primary_key=True),
        sa.Column("bundle", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("embedding", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "receipts",
        sa.Column("receipt_key", sa.LargeBinary, primary_key=True),
        _user_key(),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("comparisons", sa.Integer, nullable=False),
        sa.Column("created", _INSTANT, nullable=False),
    )
    op.create_index("receipts_user_key_index", "receipts", ["user_key"])
    op.create_table(
        "access_keys",
        sa.Column("id", _IDENTIFIER, primary_key=True),
        sa.Column("secret", sa.String(64), nullable=False, unique=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created", _INSTANT, nullable=False),
        sa.Column("expires", _INSTANT),
        sa.Column("revoked", _INSTANT),
        sqlite_autoincrement=True,
    )
    if op.get_context().dialect.name == "sqlite":
        # A version may be taken before any comparison was stored (`Database.next_identifier`).
        op.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('comparisons', 0)")


def _user_key(*, primary_key: bool = False) -> sa.Column:
    reference = sa.ForeignKey("users.user_key", ondelete="CASCADE")
    return sa.Column("user_key", sa.LargeBinary, reference, primary_key=primary_key, nullable=False)
