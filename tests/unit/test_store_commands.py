"""`penchant keys` and `penchant data export`, on a store of their own."""

import re
import sys

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from penchant.cli import app
from penchant.cli.serve import without_password
from penchant.data import PreferenceDataset
from penchant.data.choices import TextComparison
from penchant.data.split import split_dataset
from penchant.errors import ConfigError, DataError, OutputError
from penchant.store import UserStore


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/users.db"


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_key_is_shown_once_and_works_until_it_is_revoked(url):
    made = run("keys", "create", "--scope", "score", "--tenant", "acme", "--name", "app", "--store", url)
    secret = re.search(r"^penchant_\S+$", made, re.M)[0]
    assert f"Key 1 for tenant acme: score; in a new store, {url}." in made
    assert f"in {url}." in run("keys", "create", "--store", url), "it is not new any more"
    store = UserStore.open(url)
    key = store.find_key(secret)
    assert (key.tenant, key.scopes, key.revoked) == ("acme", ("score",), None)
    listed = run("keys", "list", "--store", url)
    assert "acme" in listed
    assert secret not in listed
    run("keys", "revoke", str(key.id), "--store", url)
    assert store.find_key(secret).revoked is not None


def test_where_a_key_is_kept_is_said_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PENCHANT_STORE", raising=False)
    assert f"in a new store, sqlite:///{tmp_path}/runs/service/users.db." in run("keys", "create")
    assert f"in sqlite:///{tmp_path}/runs/service/users.db." in run("keys", "create")


def test_mistakes_are_told(url, tmp_path):
    with pytest.raises(ConfigError, match="scope 'all'"):
        run("keys", "create", "--scope", "all", "--store", url)
    for command in (("keys", "list"), ("keys", "revoke", "17"), ("data", "export", str(tmp_path / "online"))):
        with pytest.raises(OutputError, match="no store"):
            run(*command, "--store", url)
    assert list(tmp_path.iterdir()) == []
    UserStore.open(url)
    with pytest.raises(DataError):
        run("keys", "revoke", "17", "--store", url)
    with pytest.raises(ConfigError, match="oracle"):
        run("keys", "list", "--store", "oracle://host/x")
    result = CliRunner().invoke(app, ["keys", "create", "--days", "3000000", "--store", url])
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)


def test_a_server_without_its_driver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"penchant\[postgres\]"):
        run("keys", "list", "--store", "postgresql://ana:secret@host/db")


def test_what_was_learnt_online_becomes_a_data_set_that_can_be_fitted_on(url, tmp_path):
    store = UserStore.open(url)
    for number in range(6):
        choices = [TextComparison(f"Prompt {prompt}.", "The one.", f"Another {number}.") for prompt in range(5)]
        store.add("default", f"user-{number}", choices)
    store.add("other", "user-0", [TextComparison("Prompt 0.", "The one.", "Another 0.")])
    store.add("default", "user-0", [TextComparison("Prompt 0.", "Yes", "Yes ")])  # as the service took it once
    said = run("data", "export", str(tmp_path / "online"), "--store", url, "--tenant", "default")
    assert "30 comparisons of 6 users" in said
    assert "Left out: 1 " in said
    split_dataset(tmp_path / "online", tmp_path / "split", test_prompts=0.2, valid=0.1, unseen=0.2, seed=0)
    dataset = PreferenceDataset.load(tmp_path / "split")
    assert sorted(dataset.user_ids) == [f"user-{number}" for number in range(6)]
    run("data", "export", str(tmp_path / "all"), "--store", url)
    users = pq.read_table(tmp_path / "all" / "users.parquet")["user_id"].to_pylist()
    assert {"default/user-0", "other/user-0"} <= set(users)


def test_a_password_is_not_shown():
    assert without_password("postgresql://ana:secret@host/db") == "postgresql://ana:***@host/db"
    assert without_password("postgresql://host/db?user=ana&password=secret") == "postgresql://host/db?***"
    assert without_password("sqlite:///a/b.db") == "sqlite:///a/b.db"
    assert without_password("secret") == "the store's URL"
