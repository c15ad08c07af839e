"""What was deleted is gone: from every table, from SQLite's bytes, and for every version that was ever given out."""

import datetime
import random
import sqlite3

import numpy as np
import pytest
from sqlalchemy import func, select

from penchant.data.choices import TextComparison
from penchant.errors import DataError
from penchant.store import Counts, UserStore, engines, tables

DERIVED = (tables.comparisons, tables.embeddings, tables.receipts)


def rows(store, table):
    with store._database.reading() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def at(year):
    return datetime.datetime(year, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def add_in(store, monkeypatch):
    """Adds comparisons in a year."""

    def add(year, user, choices, **options):
        with monkeypatch.context() as patch:
            for module in ("store", "user_rows"):
                patch.setattr(f"penchant.store.{module}.now", lambda: at(year))
            return store.add("acme", user, choices, **options)

    return add


def test_forgetting_takes_everything_of_one_user(store, choice):
    for user in ("ana", "bob"):
        receipt = store.add("acme", user, [choice(1), choice(2)], idempotency_key=user)
        store.save_embedding("acme", user, version=receipt.version, bundle="b", embedding=np.ones(2, np.float32))
    assert store.forget("acme", "ana") == 2
    assert store.user("acme", "ana") is None
    assert store.comparisons("acme", "ana", limit=9) == []
    assert store.counts() == Counts(1, 2)
    assert [rows(store, table) for table in DERIVED] == [2, 1, 1]
    assert rows(store, tables.users) == 1
    assert store.add("acme", "bob", [choice(1), choice(2)], idempotency_key="bob").replayed
    assert not store.add("acme", "ana", [choice(3)], idempotency_key="ana").replayed


def test_a_version_is_never_used_again(store, choice):
    given = []
    for number in range(4):
        given.append(store.add("acme", "ana", [choice(number)]).version)
        store.forget("acme", "ana", remember=number % 2 == 0)
        if (record := store.user("acme", "ana")) is not None:
            given.append(record.version)
    given.append(store.add("acme", "bob", [choice()]).version)
    assert given == sorted(set(given))


def test_somebody_forgotten_leaves_a_digest_alone(store, choice):
    stored = store.add("acme", "ana", [choice()])
    assert store.forget("acme", "ana", remember=True) == 1
    record = store.user("acme", "ana")
    assert (record.comparisons, record.forgotten) == (0, True)
    assert record.version > stored.version
    assert [rows(store, table) for table in DERIVED] == [0, 0, 0]
    with store._database.reading() as connection:
        left = connection.execute(select(tables.users)).mappings().one()
    assert (left["tenant"], left["user_id"]) == (None, None)
    assert b"ana" not in left["user_key"]
    assert store.counts() == Counts(0, 0)
    assert list(store.export()) == []
    assert store.user("other", "ana") is None


def test_somebody_unknown_can_be_forgotten_for_good(store):
    """A user whom only the bundle knows."""
    assert store.forget("acme", "ana", remember=True) == 0
    record = store.user("acme", "ana")
    assert record.forgotten
    assert record.version > 0


def test_somebody_forgotten_stays_so(store, choice):
    store.forget("acme", "ana", remember=True)
    versions = [store.user("acme", "ana").version, store.add("acme", "ana", [choice()]).version]
    record = store.user("acme", "ana")
    assert (record.comparisons, record.forgotten) == (1, True)
    assert [(row.tenant, row.user) for row in store.export()] == [("acme", "ana")]
    assert store.forget("acme", "ana") == 1
    record = store.user("acme", "ana")
    assert (record.comparisons, record.forgotten) == (0, True)
    versions.append(record.version)
    assert versions == sorted(set(versions))


def test_who_of_several_was_forgotten(store, choice):
    for user in ("ana", "ben"):
        store.add("t", user, [choice(1)])
    store.forget("t", "ana", remember=True)
    store.forget("t", "cem", remember=True)
    assert store.forgotten("t", ["ana", "ben", "cem", "dan"]) == {"ana", "cem"}
    assert store.forgotten("other", ["ana"]) == set()
    assert store.forgotten("t", []) == set()


def test_deleted_bytes_are_gone_from_sqlite(tmp_path):
    """Texts of all sizes, users mixed on every page; each text repeats a token, so that no rest of it goes unnoticed."""
    store = UserStore.open(f"sqlite:///{tmp_path}/users.db")
    draw = random.Random(0)
    tokens: dict[str, set[str]] = {}

    def text(user):
        token = f"{draw.getrandbits(48):012x}"
        tokens[user].add(token)
        return token * draw.choice([2, 5, 40, 200, 800])

    for number in range(60):
        user = f"name-{draw.randrange(12)}-of-somebody"
        tokens.setdefault(user, {user})
        choices = [TextComparison(text(user), text(user), text(user)) for _ in range(draw.choice([1, 3]))]
        store.add("acme", user, choices, idempotency_key=str(number) if number % 2 else None)
    gone, kept = sorted(tokens)[:6], sorted(tokens)[6:]
    for number, user in enumerate(gone):
        store.forget("acme", user, remember=number % 2 == 0)
    assert {path.name for path in tmp_path.iterdir()} == {"users.db", "users.db-wal", "users.db-shm"}
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert [token for user in kept for token in tokens[user] if token.encode() not in raw] == []
    assert [token for user in gone for token in tokens[user] if token.encode() in raw] == []
    store.close()


def test_forgetting_does_not_wait_for_somebody_who_reads(tmp_path, choice):
    store = UserStore.open(f"sqlite:///{tmp_path}/users.db")
    secret = TextComparison("the-prompt-of-ana", "a", "b")
    store.add("acme", "ana", [secret])
    store.add("acme", "bob", [choice(number) for number in range(2000)])
    reading = store.export()
    next(reading)
    assert store.forget("acme", "ana") == 1
    assert len(list(reading)) == 2000
    assert [path for path in tmp_path.iterdir() if secret.prompt.encode() in path.read_bytes()]  # in the log, for the reader
    store.add("acme", "bob", [choice()])
    assert not [path for path in tmp_path.iterdir() if secret.prompt.encode() in path.read_bytes()]
    store.close()


def test_a_log_that_cannot_be_emptied_fails_no_request(tmp_path, choice, monkeypatch):
    store = UserStore.open(f"sqlite:///{tmp_path}/users.db")
    attempts = []

    def fail(connection):
        attempts.append(connection)
        raise sqlite3.OperationalError("disk I/O error")

    store.add("acme", "ana", [choice()])
    with monkeypatch.context() as patch:
        patch.setattr(engines, "_checkpoint", fail)
        assert store.forget("acme", "ana") == 1
        assert store.add("acme", "bob", [choice()]).comparisons == 1
    assert len(attempts) == 2
    assert (tmp_path / "users.db-wal").stat().st_size > 0
    store.add("acme", "bob", [choice()])
    assert (tmp_path / "users.db-wal").stat().st_size == 0
    store.close()


def test_pruning_deletes_what_is_too_old(store, add_in, choice):
    add_in(2020, "ana", [choice(1), choice(2)], idempotency_key="old")
    mixed = add_in(2022, "ana", [choice(3)])
    gone = add_in(2020, "bob", [choice(1)])
    kept = add_in(2022, "eve", [choice(1)], idempotency_key="new")
    store.forget("acme", "zoe", remember=True)
    add_in(2020, "zoe", [choice(1)])
    for user, receipt in (("ana", mixed), ("bob", gone), ("eve", kept)):
        store.save_embedding("acme", user, version=receipt.version, bundle="b", embedding=np.ones(2, np.float32))

    assert store.prune(at(2021)) == 4
    record = store.user("acme", "ana")
    assert record.comparisons == 1
    assert [row.prompt for row in store.comparisons("acme", "ana", limit=9)] == ["prompt 3"]
    assert record.version > max(mixed.version, gone.version, kept.version)
    assert record.embeddings == {}
    assert store.user("acme", "bob") is None
    assert store.user("acme", "eve").version == kept.version
    assert len(store.user("acme", "eve").embeddings) == 1
    assert store.user("acme", "zoe").forgotten
    assert store.counts() == Counts(2, 2)
    assert [rows(store, table) for table in DERIVED] == [2, 1, 1]
    assert store.add("acme", "eve", [choice(1)], idempotency_key="new").replayed

    assert store.prune(at(2021)) == 0
    assert store.user("acme", "ana") == record
    assert store.add("acme", "ana", [choice(4)]).version > record.version
    assert store.prune(at(2100)) == 3
    assert store.counts() == Counts(0, 0)


def test_pruning_many_users(store, add_in, choice, monkeypatch):
    monkeypatch.setattr("penchant.store.retention._USERS_AT_ONCE", 3)
    for number in range(10):
        add_in(2020, f"user {number}", [choice()])
        add_in(2022 if number % 2 else 2020, f"user {number}", [choice()])
    assert store.prune(at(2021)) == 15
    assert store.counts() == Counts(5, 5)


def test_pruning_needs_a_time_zone(store):
    with pytest.raises(DataError, match="older_than"):
        store.prune(datetime.datetime(2021, 1, 1))
