"""The user store. A person's data is reached by tenant and user, never by user alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, bindparam, false, func, insert, select, union, update

from penchant.data.choices import TextComparison
from penchant.errors import DataError
from penchant.store.database import Database
from penchant.store.keys import KeyStore
from penchant.store.records import Counts, ExportedComparison, Receipt, StoredComparison, UserRecord
from penchant.store.retention import prune
from penchant.store.schema import upgrade
from penchant.store.tables import access_keys, comparisons, embeddings, now, receipts, users
from penchant.store.user_rows import lock_user, remove_user
from penchant.store.values import body_digest, check_choices, check_instant, check_text, check_user, digest, pair_digest

_STORED = ("prompt", "chosen", "rejected", "created")
# Made once: to build it would take longer than to execute it, and every request does.
_USER = (
    select(*users.c["version", "comparisons", "forgotten", "created", "updated"], *embeddings.c["bundle", "embedding"])
    .join_from(
        users,
        embeddings,
        (embeddings.c.user_key == users.c.user_key) & (embeddings.c.version == users.c.version),
        isouter=True,
    )
    .where(users.c.user_key == bindparam("key"))
)


class UserStore(KeyStore):
    """Who chose what, and what follows from it; and, in the same database, who may ask.

    Threads may share one, and processes one database. Every method raises `StoreError` where the database fails, and `DataError`
    for an id or a text that it cannot hold.
    """

    @classmethod
    def open(cls, url: str) -> UserStore:
        """Opens a store, and makes its tables or brings them up to date.

        Args:
            url: `sqlite:///path` (made if need be) or `postgresql://user:password@host/database`.

        Raises:
            ConfigError: Not such a URL, or a database that cannot hold every text.
            OutputError: SQLite's file cannot be made.
            StoreError: The database fails, or its schema is newer than this code.
        """
        database = Database(url)
        try:
            upgrade(database)
        except BaseException:
            database.close()
            raise
        return cls(database)

    @property
    def is_local(self) -> bool:
        """Whether it is a file on this machine: looking up a row takes less time than handing the look-up to a thread."""
        return self._database.is_local

    def close(self) -> None:
        """Closes every connection."""
        self._database.close()

    def check(self) -> None:
        """Raises `StoreError` unless the database answers and would take a write."""
        with self._database.writing() as connection:
            connection.execute(update(users).where(false()).values(comparisons=0))

    def user(self, tenant: str, user: str) -> UserRecord | None:
        """What is known of a user, or None. One statement over two indices: cheap enough for every request."""
        check_user(tenant, user)
        with self._database.reading() as connection:
            rows = connection.execute(_USER, {"key": digest(tenant, user)}).all()
        if not rows:
            return None
        by_bundle = {row.bundle: np.frombuffer(row.embedding, "<f4").astype(np.float32) for row in rows if row.bundle is not None}
        version, count, forgotten, created, updated, *_ = rows[0]
        return UserRecord(tenant, user, version, count, forgotten, created, updated, by_bundle)

    def forgotten(self, tenant: str, several: Sequence[str]) -> set[str]:
        """Which of these users were forgotten, and remembered as such: see `forget`."""
        by_key = {digest(tenant, user): user for user in several}
        found = select(users.c.user_key).where(users.c.user_key.in_(by_key), users.c.forgotten)
        with self._database.reading() as connection:
            return {by_key[key] for key in connection.execute(found).scalars()}

    def add(
        self, tenant: str, user: str, comparisons: Sequence[TextComparison], *, idempotency_key: str | None = None
    ) -> Receipt:
        """Stores comparisons of a user, all or none.

        Args:
            tenant: Whose user it is.
            user: The user's id.
            comparisons: At least one, oldest first.
            idempotency_key: The client's name for this request, unique within the tenant. The same request under the same key
                stores nothing more and gets the first receipt again, until the user is forgotten or the receipt pruned.

        Raises:
            DataError: No comparison, a text that cannot be held, or a key that was used for another request.
        """
        check_user(tenant, user)
        check_choices(comparisons)
        if idempotency_key is not None:
            check_text(idempotency_key, "Idempotency-Key")
        with self._database.writing() as connection:
            before = lock_user(self._database, connection, tenant, user)
            if idempotency_key is not None:
                request = digest(tenant, idempotency_key)
                earlier = self._claim(connection, request, digest(tenant, user), body_digest(user, comparisons))
                if earlier is not None:
                    return earlier
            version = _append(connection, digest(tenant, user), comparisons)
            state = {"version": version, "comparisons": before.comparisons + len(comparisons)}
            of_user = users.c.user_key == digest(tenant, user)
            connection.execute(update(users).where(of_user).values(updated=now(), **state))
            if idempotency_key is not None:
                connection.execute(update(receipts).where(receipts.c.receipt_key == request).values(state))
        return Receipt(**state, replayed=False)

    def comparisons(self, tenant: str, user: str, *, limit: int) -> list[StoredComparison]:
        """The newest `limit` comparisons of a user, oldest first; where there are several on one pair, only the latest counts."""
        check_user(tenant, user)
        latest = select(func.max(comparisons.c.id)).where(comparisons.c.user_key == digest(tenant, user))
        latest = latest.group_by(comparisons.c.pair).order_by(func.max(comparisons.c.id).desc()).limit(max(limit, 0))
        found = select(*(comparisons.c[name] for name in _STORED)).where(comparisons.c.id.in_(latest))
        with self._database.reading() as connection:
            return [StoredComparison(*row) for row in connection.execute(found.order_by(comparisons.c.id))]

    def save_embedding(self, tenant: str, user: str, *, version: int, bundle: str, embedding: NDArray[np.float32]) -> None:
        """Keeps a user's embedding (D,) under a bundle, in the place of an older one.

        Nothing is kept unless this is still the user's version: what was derived from comparisons that are deleted meanwhile
        must not outlive them, and what is out of date nobody asks for.
        """
        check_user(tenant, user)
        check_text(bundle, "bundle")
        if embedding.ndim != 1:
            raise DataError(f"It has shape {embedding.shape}, not (D,).", where="embedding", fix="Give one embedding.")
        user_key = digest(tenant, user)
        of_user = select(users.c.version).where(users.c.user_key == user_key, users.c.comparisons > 0).with_for_update()
        values = {"version": version, "embedding": embedding.astype("<f4").tobytes()}
        row = self._database.insert(embeddings).values(user_key=user_key, bundle=bundle, **values)
        replaced = row.on_conflict_do_update(
            index_elements=[embeddings.c.user_key, embeddings.c.bundle], set_=values, where=embeddings.c.version < version
        )
        with self._database.writing() as connection:
            if connection.execute(of_user).scalar_one_or_none() == version:
                connection.execute(replaced)

    def forget(self, tenant: str, user: str, *, remember: bool = False) -> int:
        """Deletes everything about a user, and returns how many comparisons that were.

        Args:
            tenant: Whose user it is.
            user: The user's id.
            remember: Keep a digest of the id (not the id), so that `user` says that this user is forgotten: for somebody whom a
                bundle knows from training. Who is remembered so stays so, whatever comes later.
        """
        check_user(tenant, user)
        with self._database.writing() as connection:
            before = lock_user(self._database, connection, tenant, user)
            remove_user(self._database, connection, digest(tenant, user), remember=remember or before.forgotten)
        if before.comparisons:
            self._database.erase_deleted()
        return before.comparisons

    def prune(self, older_than: datetime) -> int:
        """Deletes the comparisons that were stored before an instant, and returns how many that were.

        Users without any comparison left are deleted too; the others get a new version. Receipts of that age go as well.

        Raises:
            DataError: The instant has no time zone.
        """
        check_instant(older_than, "older_than")
        deleted = prune(self._database, older_than)
        if deleted:
            self._database.erase_deleted()
        return deleted

    def export(self, tenant: str | None = None) -> Iterator[ExportedComparison]:
        """Every stored comparison, or every one of a tenant, oldest first: streamed, and all as they were at one moment."""
        if tenant is not None:
            check_text(tenant, "tenant")
        return self._export(tenant)

    def counts(self) -> Counts:
        """How many users have comparisons, and how many these are."""
        counted = select(func.count(), func.coalesce(func.sum(users.c.comparisons), 0)).where(users.c.comparisons > 0)
        with self._database.reading() as connection:
            return Counts(*connection.execute(counted).one())

    def tenants(self) -> list[str]:
        """Whose users or keys the store holds, by name. Of users who were forgotten it does not tell any more."""
        found = union(select(users.c.tenant).where(users.c.tenant.is_not(None)), select(access_keys.c.tenant))
        with self._database.reading() as connection:
            return sorted(connection.scalars(found))

    def _claim(self, connection: Connection, request: bytes, user_key: bytes, body: bytes) -> Receipt | None:
        """Makes the receipt of a request, still without a version; or returns the one that an earlier request got."""
        row = self._database.insert(receipts).values(
            receipt_key=request, user_key=user_key, body=body, version=0, comparisons=0, created=now()
        )
        # Of several requests with one key the first goes on, and the others wait here until it is committed.
        claimed = row.on_conflict_do_update(
            index_elements=[receipts.c.receipt_key], set_={"receipt_key": row.excluded.receipt_key}
        ).returning(receipts.c.body, receipts.c.version, receipts.c.comparisons)
        found = connection.execute(claimed).one()
        if found.body != body:
            raise DataError(
                "This key was used for another request.", where="Idempotency-Key", fix="Give every request a key of its own."
            )
        return Receipt(found.version, found.comparisons, replayed=True) if found.version else None

    def _export(self, tenant: str | None) -> Iterator[ExportedComparison]:
        columns = [*(comparisons.c[name] for name in _STORED), users.c.tenant, users.c.user_id]
        found = select(*columns).join_from(comparisons, users).order_by(comparisons.c.id)
        if tenant is not None:
            found = found.where(users.c.tenant == tenant)
        with self._database.streaming() as connection:
            for row in connection.execute(found):
                yield ExportedComparison(*row)


def _append(connection: Connection, user_key: bytes, choices: Sequence[TextComparison]) -> int:
    """Appends comparisons in their order, and returns the id of the last."""
    rows = [
        {
            "user_key": user_key,
            "pair": pair_digest(choice),
            "prompt": choice.prompt,
            "chosen": choice.chosen,
            "rejected": choice.rejected,
            "created": now(),
        }
        for choice in choices
    ]
    appended = insert(comparisons).returning(comparisons.c.id, sort_by_parameter_order=True)
    return list(connection.scalars(appended, rows))[-1]
