"""Opening a store: URLs, schemas, and databases that fail."""

import contextlib
import os
import pickle
import shutil
import socket
import sqlite3
import stat
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import make_url, text

from penchant.data.choices import TextComparison
from penchant.errors import ConfigError, OutputError, StoreError
from penchant.store import UserStore, engines
from penchant.store.schema import VERSION_TABLE
from penchant.store.tables import metadata

PASSWORD = "hunter2-is-nobodys-business"
CHOICES = [TextComparison("a prompt that is nobody's business", "a", "b")]


def run(store, statement):
    with store._database.writing() as connection:
        connection.execute(text(statement))


def pragma(store, name):
    with store._database.reading() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


def test_a_store_outlives_its_process(url):
    with contextlib.closing(UserStore.open(url)) as store:
        receipt = store.add("acme", "ana", CHOICES)
        store.check()
    with contextlib.closing(UserStore.open(url)) as store:
        assert store.user("acme", "ana").version == receipt.version
        assert store.add("acme", "ana", CHOICES).version > receipt.version


def test_the_migrations_make_the_tables(store):
    with store._database.reading() as connection:
        options = {"version_table": VERSION_TABLE, "target_metadata": metadata, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_a_schema_of_a_newer_penchant_is_refused(url):
    with contextlib.closing(UserStore.open(url)) as store:
        run(store, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"schema 9999.*newer penchant"):
        UserStore.open(url)


@pytest.mark.parametrize("stores", ["one", "many"])
def test_threads_opening_at_once(url, tmp_path, stores):
    together = threading.Barrier(4)

    def open_one(number):
        together.wait()
        return UserStore.open(url if stores == "one" else f"sqlite:///{tmp_path}/{number}.db")

    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(open_one, range(4)))
    for store in opened:
        store.add("acme", "ana", CHOICES)
    assert opened[0].user("acme", "ana").comparisons == (4 if stores == "one" else 1)
    for store in opened:
        store.close()


def test_sqlite_is_set_up_to_keep_its_promises(tmp_path):
    path = tmp_path / "a folder" / "50% of users.db"
    store = UserStore.open(f"sqlite:///{str(path).replace('%', '%25')}")
    settings = ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout", "journal_size_limit")
    assert [pragma(store, name) for name in settings] == ["wal", 2, 1, 1, 5000, 0]
    for _ in range(3):
        store.add("acme", "ana", CHOICES)
        store.forget("acme", "ana")
    assert pragma(store, "busy_timeout") == 5000
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert path.exists()
    store.close()


@pytest.mark.parametrize("path", ["sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:", "sqlite:///a.db?mode=memory"])
def test_memory_is_refused(path):
    with pytest.raises(ConfigError, match="not memory"):
        UserStore.open(path)


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://ana:{PASSWORD}@host/users",
        f"postgresql+psycopg2://ana:{PASSWORD}@host/users",
        f"postgresql://ana:{PASSWORD}@host:{PASSWORD}/users",
        f"ana:{PASSWORD}",
        PASSWORD,
        "",
    ],
)
def test_another_url_is_refused_without_its_password(url):
    with pytest.raises(ConfigError, match="sqlite:///PATH or postgresql://") as caught:
        UserStore.open(url)
    assert PASSWORD not in str(caught.value)
    assert PASSWORD not in repr(pickle.loads(pickle.dumps(caught.value)))


def test_a_server_that_does_not_answer():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(StoreError, match="does not answer") as caught:
            UserStore.open(f"postgres://ana:{PASSWORD}@127.0.0.1:{port}/users?sslpassword={PASSWORD}")
    assert PASSWORD not in str(caught.value)
    assert str(caught.value).startswith(f"postgresql://127.0.0.1:{port}/users: ")


def test_a_server_that_accepts_and_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        before = time.monotonic()
        port = silent.getsockname()[1]
        with pytest.raises(StoreError, match="does not answer"):
            UserStore.open(f"postgresql://ana@127.0.0.1:{port}/users?connect_timeout=2")
        assert time.monotonic() - before < 4


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "users.db").write_text("dear diary " * 1000)
    with pytest.raises(StoreError, match="no SQLite database"):
        UserStore.open(f"sqlite:///{tmp_path}/users.db")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        UserStore.open(f"sqlite:///{tmp_path}/file/users.db")


def test_a_file_that_was_removed_takes_no_writes(tmp_path):
    store = UserStore.open(f"sqlite:///{tmp_path}/users.db")
    store.add("acme", "ana", CHOICES)
    for path in tmp_path.iterdir():
        path.unlink()
    for attempt in (lambda: store.add("acme", "ana", CHOICES), store.check):
        with pytest.raises(StoreError, match="removed or replaced"):
            attempt()
    store.close()
    with pytest.raises(StoreError, match="cannot be opened"):
        store.check()  # a new connection does not make a new, empty file
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def nobody():
    """Becomes a user whom file permissions hold back; root is not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


def read_only(folder, *, mode):
    with contextlib.closing(UserStore.open(f"sqlite:///{folder}/users.db")) as store:
        store.add("acme", "ana", CHOICES)
    (folder / "users.db").chmod(0o444)
    folder.chmod(mode)


def test_a_file_that_may_only_be_read(open_folder, request):
    read_only(open_folder, mode=0o777)
    request.getfixturevalue("nobody")
    with contextlib.closing(UserStore.open(f"sqlite:///{open_folder}/users.db")) as store:
        assert store.user("acme", "ana").comparisons == 1
        for attempt in (lambda: store.add("acme", "ana", CHOICES), store.check, lambda: store.forget("acme", "ana")):
            with pytest.raises(StoreError, match="cannot be written"):
                attempt()
        assert store.counts().comparisons == 1


def test_a_folder_that_may_only_be_read(open_folder, request):
    read_only(open_folder, mode=0o555)
    request.getfixturevalue("nobody")
    with pytest.raises(StoreError, match=r"right to write|may write"):
        UserStore.open(f"sqlite:///{open_folder}/users.db")


def test_another_writer_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0.2)
    store = UserStore.open(f"sqlite:///{tmp_path}/users.db")
    store.add("acme", "ana", CHOICES)
    with contextlib.closing(sqlite3.connect(tmp_path / "users.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="Others are writing"):
            store.add("acme", "ana", CHOICES)
        with pytest.raises(StoreError, match="Others are writing"):
            store.check()
        assert store.user("acme", "ana").comparisons == 1  # readers do not wait
        other.execute("ROLLBACK")
    assert store.add("acme", "ana", CHOICES).comparisons == 2
    store.close()


def test_a_full_disk(tmp_path, monkeypatch):
    prepare = engines._prepare_sqlite

    def limited(connection, record):
        prepare(connection, record)
        connection.execute("PRAGMA max_page_count = 40")

    monkeypatch.setattr(engines, "_prepare_sqlite", limited)
    store = UserStore.open(f"sqlite:///{tmp_path}/users.db")
    store.add("acme", "ana", CHOICES)
    with pytest.raises(StoreError, match="disk is full; nothing was stored") as caught:
        store.add("acme", "ana", [*CHOICES, TextComparison("p", "a" * 200_000, "b")])
    assert "aaa" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert store.user("acme", "ana").comparisons == len(list(store.export())) == 1
    assert store.add("acme", "ana", CHOICES).comparisons == 2
    store.close()


def test_a_database_that_only_reads(make_postgres, postgres_server):
    url = make_postgres()
    UserStore.open(url).close()
    name = url.partition("@/")[2].partition("?")[0]
    with contextlib.closing(psycopg.connect(**postgres_server)) as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with contextlib.closing(UserStore.open(url)) as store:
        assert store.user("acme", "ana") is None
        for attempt in (lambda: store.add("acme", "ana", CHOICES), store.check):
            with pytest.raises(StoreError, match="cannot be written"):
                attempt()


def test_a_server_that_dropped_its_connections(make_postgres, postgres_server):
    with contextlib.closing(UserStore.open(make_postgres())) as store:
        store.add("acme", "ana", CHOICES)
        with contextlib.closing(psycopg.connect(**postgres_server)) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'penchant'")
        assert store.add("acme", "ana", CHOICES).comparisons == 2
        assert store.user("acme", "ana").comparisons == 2


def test_a_statement_that_takes_too_long(make_postgres):
    url = make_postgres()
    with contextlib.closing(UserStore.open(url)) as store:
        with store._database.reading() as connection:
            assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "10s"
        with store._database.streaming() as connection:
            assert connection.execute(text("SELECT current_setting('statement_timeout')")).scalar_one() == "0"
    with (
        contextlib.closing(UserStore.open(f"{url}&options=-c%20statement_timeout%3D50")) as store,
        pytest.raises(StoreError, match="took too long"),
    ):
        run(store, "SELECT pg_sleep(5)")


def test_a_database_that_cannot_hold_every_text(make_postgres):
    with pytest.raises(ConfigError, match="encoding is LATIN1"):
        UserStore.open(make_postgres("ENCODING LATIN1 TEMPLATE template0"))


def test_a_database_of_another_application(make_postgres):
    """Alembic's usual table there is none of our business; nor is a password in the message."""
    url = make_postgres()
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('theirs')")
    with contextlib.closing(UserStore.open(url)) as store:
        assert store.add("acme", "ana", CHOICES).comparisons == 1
    with pytest.raises(StoreError, match="does not answer, or refuses") as caught:
        UserStore.open(url.replace("/store", "/no_such_store"))
    assert make_url(url).password not in str(caught.value)
