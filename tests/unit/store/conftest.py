"""Stores to test: SQLite in a file, and a PostgreSQL server that the tests start for themselves."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from penchant.data.choices import TextComparison
from penchant.store import UserStore

PASSWORD = "hunter2-is-nobodys-business"


def binary(name: str) -> str | None:
    installed = [str(path.parent) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)]
    return shutil.which(name, path=os.pathsep.join([*installed, os.environ.get("PATH", "")]))


@pytest.fixture(scope="session")
def postgres_server():
    """The parameters of a connection to a server on a socket in a temporary folder, as psycopg takes them."""
    initdb, postgres = binary("initdb"), binary("postgres")
    if initdb is None or postgres is None:
        missing = "PostgreSQL's initdb and postgres are not in PATH or /usr/lib/postgresql: apt-get install postgresql"
        if os.environ.get("PENCHANT_REQUIRE_POSTGRES") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    folder = tempfile.mkdtemp(prefix="penchant-postgres-", dir="/tmp")  # a socket's path may have 107 bytes
    somebody = {}
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        shutil.chown(folder, "nobody")
        somebody = {"user": "nobody", "group": os.stat(folder).st_gid, "extra_groups": []}
    try:
        prepare = [initdb, "-D", f"{folder}/data", "-U", "penchant", "-E", "UTF8", "--locale=C", "--auth=trust", "--no-sync"]
        subprocess.run(prepare, check=True, capture_output=True, cwd=folder, **somebody)
        settings = [
            f"unix_socket_directories={folder}",
            "listen_addresses=",
            "fsync=off",
            "full_page_writes=off",
            "autovacuum=off",
        ]
        command = [postgres, "-D", f"{folder}/data", *(word for setting in settings for word in ("-c", setting))]
        # The shell ends the server when the pipe to it is closed: also where the tests are killed.
        with open(f"{folder}/log", "wb") as log:
            server = subprocess.Popen(
                ["sh", "-c", '"$@" & cat; kill -QUIT $!; wait', "sh", *command],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                **somebody,
            )
        try:
            parameters = {"host": folder, "user": "penchant", "dbname": "postgres", "autocommit": True}
            deadline = time.monotonic() + 60
            while True:
                try:
                    psycopg.connect(**parameters).close()
                    break
                except psycopg.OperationalError:
                    if time.monotonic() > deadline:
                        pytest.fail(f"PostgreSQL did not start: {Path(folder, 'log').read_text()}")
                    time.sleep(0.05)
            yield parameters
        finally:
            server.stdin.close()
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def make_postgres(postgres_server):
    """Makes a database, and returns its URL. The password in it is not asked for, but it must not be told."""

    numbers = count()

    def make(options: str = "") -> str:
        name = f"store{next(numbers)}"
        with contextlib.closing(psycopg.connect(**postgres_server)) as connection:
            connection.execute(f"CREATE DATABASE {name} {options}")
        return f"postgresql://penchant:{PASSWORD}@/{name}?host={postgres_server['host']}"

    return make


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    """The URL of a new, empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/users.db"
    return request.getfixturevalue("make_postgres")()


@pytest.fixture(scope="session")
def _shared_postgres(make_postgres):
    with contextlib.closing(UserStore.open(make_postgres())) as store:
        yield store


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    """An empty store on either kind of database."""
    if request.param == "sqlite":
        with contextlib.closing(UserStore.open(f"sqlite:///{tmp_path}/users.db")) as store:
            yield store
    else:  # a new database takes longer than most tests
        store = request.getfixturevalue("_shared_postgres")
        with store._database.writing() as connection:
            connection.execute(text("TRUNCATE users, access_keys CASCADE"))
        yield store


@pytest.fixture
def choice():
    """Makes choices that differ."""

    def make(number: int = 0) -> TextComparison:
        return TextComparison(f"prompt {number}", f"chosen {number}", f"rejected {number}")

    return make
