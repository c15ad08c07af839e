"""`penchant forget`, `penchant store prune` and `penchant data drop-users`."""

import datetime
import re
import shutil

import pytest
from typer.testing import CliRunner

from penchant.adapters.store import AdapterStore
from penchant.artifacts import Manifest, list_files
from penchant.cli import app
from penchant.data.choices import TextComparison
from penchant.errors import ArtifactError, ConfigError, DataError, OutputError, StoreError
from penchant.scoring.bundle import read_bundle
from penchant.store import UserStore
from penchant.store import store as store_module

CHOICE = TextComparison("Explain tides.", "The moon pulls.", "Ha!")


@pytest.fixture
def url(tmp_path):
    """A store with a seen user of the bundle and one who is in the store alone."""
    url = f"sqlite:///{tmp_path}/users.db"
    store = UserStore.open(url)
    for tenant, user in (("default", "user-0001"), ("default", "online"), ("acme", "online")):
        store.add(tenant, user, [CHOICE])
    store.close()
    return url


@pytest.fixture
def folder(bundle, tmp_path):
    shutil.copytree(bundle[0], tmp_path / "bundle")
    return tmp_path / "bundle"


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_one_command_forgets_everywhere(folder, url, tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"user-0001\r\n\nuser-0002\nuser-0001\n")
    said = run("forget", "online", "--users", tmp_path / "ids.txt", "--bundle", folder, "--store", url, "--tenant", "default")
    assert "2 users are taken out" in said
    assert Manifest.read(folder, verify=True).name in said
    assert "The store knew 2 of 3 as users of tenant default: 2 comparisons deleted." in said
    assert not {"user-0001", "user-0002"} & set(read_bundle(folder)[1].user_ids)
    store = UserStore.open(url)
    for user in ("user-0001", "user-0002", "online"):
        record = store.user("default", user)
        assert (record.comparisons, record.forgotten) == (0, True), "a service with the old bundle is told"
    assert store.user("acme", "online").comparisons == 1, "of another tenant"
    # Again, as after an interruption: what is done already is no mistake.
    again = run("forget", "user-0001", "online", "--bundle", folder, "--store", url)  # only acme has users by now
    assert "does not hold them" in again


def test_adapters_go_too(folder, url, personal_writer, tmp_path):
    shutil.copytree(personal_writer / "store", tmp_path / "adapters")
    adapters = AdapterStore.open(tmp_path / "adapters")
    mine, other = [user for user in adapters.users() if user != "locked"][:2]
    locked = "locked"
    said = run("forget", mine, locked, "online", "--store", url, "--tenant", "default", "--adapters", tmp_path / "adapters")
    assert "Adapters deleted: 2." in said
    assert "The store knew 1 of 3" in said
    assert [user in adapters for user in (mine, locked, other)] == [False, False, True]
    # Again, as after an interruption; and then the other two alone.
    again = run("forget", mine, "--store", url, "--tenant", "default", "--adapters", tmp_path / "adapters")
    assert "Adapters deleted: 0." in again
    with pytest.raises(DataError, match=re.escape(f"'{mine}'")):
        run("forget", mine, other, "--adapters", tmp_path / "adapters")
    assert other in adapters
    assert "Adapters deleted: 1." in run("forget", other, "--adapters", tmp_path / "adapters")
    assert "Adapters deleted: 0." in run("forget", "user-0001", "--bundle", folder, "--adapters", tmp_path / "adapters")


def test_what_a_failing_store_interrupts_the_same_command_finishes(folder, url, monkeypatch):
    everybody = ("forget", "user-0001", "user-0002", "--bundle", folder, "--store", url, "--tenant", "default")
    files = list_files(folder)

    def fail(*arguments, **named):
        raise StoreError("The disk is full; nothing was stored.")

    with monkeypatch.context() as full:
        full.setattr(UserStore, "forget", fail)
        with pytest.raises(StoreError):
            run(*everybody)
    assert list_files(folder) == files
    run(*everybody)
    assert not {"user-0001", "user-0002"} & set(read_bundle(folder)[1].user_ids)
    assert UserStore.open(url).user("default", "user-0002").forgotten


def test_the_store_alone(url):
    said = run("forget", "online", "--store", url, "--tenant", "acme")
    assert "The store knew 1 of 1 as users of tenant acme: 1 comparisons deleted." in said
    assert UserStore.open(url).counts().comparisons == 2


def test_a_user_of_the_bundle_who_never_asked_the_service_is_no_mistake(folder, url):
    said = run("forget", "user-0003", "--bundle", folder, "--store", url, "--tenant", "default")
    assert "The store knew 0 of 1" in said
    assert UserStore.open(url).user("default", "user-0003").forgotten, "a service with the old bundle is told"


def test_where_the_store_has_one_tenant_it_need_not_be_said(folder, tmp_path):
    url = f"sqlite:///{tmp_path}/one.db"
    UserStore.open(url).add("default", "ana", [CHOICE])
    assert "knew 1 of 1 as users of tenant default" in run("forget", "ana", "--store", url)
    acme = f"sqlite:///{tmp_path}/acme.db"
    UserStore.open(acme).add("acme", "user-0001", [CHOICE])
    files = list_files(folder)
    with pytest.raises(DataError, match=r"knows none of them.*it has acme"):
        run("forget", "user-0001", "--bundle", folder, "--store", acme)
    assert list_files(folder) == files
    assert UserStore.open(acme).user("acme", "user-0001").comparisons == 1
    assert UserStore.open(acme).user("default", "user-0001") is None


def test_to_another_folder(folder, tmp_path):
    files = list_files(folder)
    said = run("forget", "user-0001", "--bundle", folder, "--out", tmp_path / "new")
    assert f"Still held by: {folder}, the run's folder" in said
    assert list_files(folder) == files
    assert "user-0001" not in read_bundle(tmp_path / "new")[1].user_ids


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["user-0001"], ConfigError, "--bundle, --store or --adapters"),
        (["--bundle", "BUNDLE"], ConfigError, "no user"),
        (["--bundle", "BUNDLE", "--users", "none.txt"], DataError, "none.txt"),
        (["user-0001", "--bundle", "s3://runs/bundle", "--store", "STORE"], DataError, "s3://runs/bundle: This is read"),
        (["user-0001", "--bundle", "BUNDLE", "--tenant", "acme"], ConfigError, "--tenant means nothing without --store"),
        (["user-0001", "--store", "STORE", "--out", "new"], ConfigError, "--out means nothing without --bundle"),
        (["user-0001", "online", "--bundle", "BUNDLE"], DataError, "'online'"),
        (["online", "ghost", "--bundle", "BUNDLE", "--store", "STORE", "--tenant", "default"], DataError, "'ghost'"),
        (["user-0001", "--bundle", "BUNDLE", "--store", "STORE"], ConfigError, "several tenants: acme, default"),
        (["user-0001", "--bundle", "BUNDLE", "--store", "STORE", "--tenant", "acm"], DataError, "it has acme, default"),
        (["user-0001", "--store", "STORE", "--tenant", "acme"], DataError, "'user-0001'"),
        (["user-0001", "--bundle", "BUNDLE", "--store", "sqlite:///slip.db"], OutputError, "no store"),
        (["user-0001", "--bundle", "BUNDLE", "--adapters", "slip"], ArtifactError, "no store of adapters"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(folder, url, arguments, error, said):
    before = list_files(folder)
    given = [str({"BUNDLE": folder, "STORE": url}.get(argument, argument)) for argument in arguments]
    with pytest.raises(error) as raised:
        run("forget", *given)
    assert said in str(raised.value)
    assert list_files(folder) == before
    assert UserStore.open(url).counts().comparisons == 3


def test_prune_deletes_what_is_too_old(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/users.db"
    store = UserStore.open(url)
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=40)
    with monkeypatch.context() as past:
        past.setattr(store_module, "now", lambda: long_ago)
        store.add("default", "ana", [CHOICE, TextComparison("Why?", "Because.", "Ha!")])
        store.add("acme", "bob", [CHOICE])
    store.add("default", "ana", [TextComparison("When?", "Now.", "Ha!")])
    assert "Deleted: 0 comparisons" in run("store", "prune", "--older-than", "41", "--store", url)
    said = run("store", "prune", "--older-than", "39", "--store", url)
    assert "Deleted: 3 comparisons" in said
    assert "Left: 1, of 1 users" in said
    assert [choice.prompt for choice in store.comparisons("default", "ana", limit=9)] == ["When?"]
    assert store.user("acme", "bob") is None


def test_prune_makes_no_store_by_a_slip(tmp_path):
    with pytest.raises(OutputError, match="no store"):
        run("store", "prune", "--older-than", "30", "--store", f"sqlite:///{tmp_path}/slip.db")
    assert list(tmp_path.iterdir()) == []


def test_users_are_dropped_from_a_data_set(planted, tmp_path):
    planted[0].save(tmp_path / "data")
    said = run("data", "drop-users", tmp_path / "data", tmp_path / "out", planted[0].user_ids[0])
    assert "Without 1 users" in said
    assert "The data can be used" in run("data", "check", tmp_path / "out")
