"""Alembic runs this module whenever it migrates: on the connection, and in the transaction, that `schema.upgrade` gives it."""

from alembic import context

from penchant.store.schema import VERSION_TABLE
from penchant.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
