"""Keys to the service: bearer secrets, each bound to a tenant and to what it allows."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from datetime import datetime
from typing import Any, cast, get_args

from sqlalchemy import Row, bindparam, func, insert, select, update

from penchant.errors import DataError
from penchant.store.database import Database
from penchant.store.records import KeyRecord, Scope
from penchant.store.tables import access_keys, now
from penchant.store.values import check_instant, check_text

SCOPES: tuple[Scope, ...] = get_args(Scope)
_COLUMNS = [column for column in access_keys.c if column.name != "secret"]
_KEY = select(*_COLUMNS).where(access_keys.c.secret == bindparam("hash"))  # made once, for every request asks it
_LARGEST_ID = 2**63 - 1


class KeyStore:
    """The keys that are kept in a store. Of a secret there is only the hash: a stolen database opens nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create_key(
        self, tenant: str, scopes: Collection[Scope], *, name: str = "", expires: datetime | None = None
    ) -> tuple[KeyRecord, str]:
        """Makes a key.

        Returns:
            Its record, and its secret: nobody can ever read that again.

        Raises:
            DataError: No scope or an unknown one, an instant without a time zone, or a text that cannot be held.
        """
        check_text(tenant, "tenant")
        check_text(name, "name")
        if not scopes or not set(scopes) <= set(SCOPES):
            raise DataError(f"These are no scopes: {list(scopes)}.", where="scopes", fix=f"Give some of {', '.join(SCOPES)}.")
        if expires is not None:
            check_instant(expires, "expires")
        # 32 random bytes: nothing to guess, so that one round of a fast hash is enough.
        secret = f"penchant_{secrets.token_urlsafe(32)}"
        values = {"tenant": tenant, "scopes": " ".join(sorted(set(scopes))), "name": name, "created": now(), "expires": expires}
        with self._database.writing() as connection:
            made = insert(access_keys).values(secret=_hash(secret), **values)
            return _record(connection.execute(made.returning(*_COLUMNS)).one()), secret

    def find_key(self, secret: str) -> KeyRecord | None:
        """The key with this secret, or None. Ask the record whether it is still `valid`."""
        with self._database.reading() as connection:
            row = connection.execute(_KEY, {"hash": _hash(secret)}).one_or_none()
        return None if row is None else _record(row)

    def list_keys(self, tenant: str | None = None) -> list[KeyRecord]:
        """Every key, or every key of a tenant, oldest first; also those that are no longer valid."""
        found = select(*_COLUMNS).order_by(access_keys.c.id)
        if tenant is not None:
            check_text(tenant, "tenant")
            found = found.where(access_keys.c.tenant == tenant)
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(found)]

    def revoke_key(self, id: int) -> KeyRecord:
        """Ends a key for good. Doing it twice changes nothing.

        Raises:
            DataError: There is no such key.
        """
        revoked = update(access_keys).where(access_keys.c.id == max(0, min(id, _LARGEST_ID)))
        revoked = revoked.values(revoked=func.coalesce(access_keys.c.revoked, now())).returning(*_COLUMNS)
        with self._database.writing() as connection:
            row = connection.execute(revoked).one_or_none()
        if row is None:
            raise DataError(f"There is no key {id}.", where="id", fix="Give an id from the list of keys.")
        return _record(row)


def _hash(secret: str) -> str:
    # What comes from outside may be anything; it is then simply not found.
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _record(row: Row[Any]) -> KeyRecord:
    values = row._asdict()
    values["scopes"] = tuple(cast(list[Scope], row.scopes.split()))
    return KeyRecord(**values)
