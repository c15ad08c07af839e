"""Folders in an object store, against moto's server."""

import json
import os
import threading
from pathlib import Path

import pytest

from penchant import storage
from penchant.errors import ConfigError, PenchantError, StorageError
from penchant.storage import folders


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    (made / "a.txt").write_text("first")
    (made / "deep" / "b.txt").write_text("second")
    return made


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "cache"))


def contents(path):
    return {file.relative_to(path).as_posix(): file.read_text() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("location", "names", "joined"),
    [
        ("runs/fit", ("bundle",), "runs/fit/bundle"),
        ("s3://b/runs/", ("fit", "bundle"), "s3://b/runs/fit/bundle"),
        ("s3://b/x?region=eu-west-1", ("y",), "s3://b/x/y?region=eu-west-1"),
    ],
)
def test_locations_are_joined_and_told_apart(location, names, joined):
    assert storage.join(location, *names) == joined
    assert storage.is_remote(location) == location.startswith("s3")
    assert storage.local_copy("runs/fit") == Path("runs/fit")
    assert storage.absolute("runs") == str(Path.cwd() / "runs")
    assert storage.absolute("s3://b/x") == "s3://b/x"


def test_what_is_published_comes_back_and_is_kept(bucket, folder):
    storage.publish(folder, f"{bucket}/run/graph")
    copy = storage.local_copy(f"{bucket}/run/graph")
    assert contents(copy) == {"a.txt": "first", "deep/b.txt": "second"}
    assert storage.local_copy(f"{bucket}/run/graph") == copy, "the same content is not copied again"
    (folder / "a.txt").write_text("other")
    (folder / "deep" / "b.txt").unlink()
    storage.publish(folder, f"{bucket}/run/graph")
    assert contents(storage.local_copy(f"{bucket}/run/graph")) == {"a.txt": "other"}
    assert contents(copy) == {"a.txt": "first", "deep/b.txt": "second"}, "who has the old content open keeps it"


def test_only_what_changed_is_sent(bucket, folder, monkeypatch):
    storage.publish(folder, f"{bucket}/x")
    sent, upload = [], folders.upload_files
    monkeypatch.setattr(folders, "upload_files", lambda root, names, *rest: sent.extend(names) or upload(root, names, *rest))
    storage.publish(folder, f"{bucket}/x")
    assert sent == []
    (folder / "a.txt").write_text("other")
    storage.publish(folder, f"{bucket}/x")
    assert sent == ["a.txt"]


def test_half_a_folder_is_never_seen(bucket, folder, tmp_path, monkeypatch):
    """The writer is stopped in the middle: a reader finds nothing published, or (by another's index) refuses the mixture."""
    uri = f"{bucket}/x"
    storage.publish(folder, uri)
    index = storage.read_bytes(storage.join(uri, storage.INDEX))
    (folder / "a.txt").write_text("later")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_file", stop)
        with pytest.raises(KeyboardInterrupt):
            storage.publish(folder, uri)
    assert storage.pull(uri, tmp_path / "mirror") is None
    assert not (tmp_path / "mirror").exists()
    (tmp_path / "files.json").write_bytes(index)
    storage.upload(tmp_path / "files.json", storage.join(uri, storage.INDEX))  # a reader that had the old index already
    with pytest.raises(StorageError, match=r"a\.txt is not the file that was published"):
        storage.local_copy(uri)
    with pytest.raises(StorageError, match="not the file"):
        storage.pull(uri, tmp_path / "mirror")
    assert not (tmp_path / "mirror").exists()
    storage.publish(folder, uri)
    assert storage.pull(uri, tmp_path / "mirror") == storage.digests(folder)


def test_what_others_put_there_stays(bucket, folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    storage.upload(tmp_path / "thesis.txt", f"{bucket}/x/thesis.txt")
    storage.publish(folder, f"{bucket}/x")
    assert "thesis.txt" in storage.sizes(f"{bucket}/x")
    assert "thesis.txt" not in contents(storage.local_copy(f"{bucket}/x"))


def test_a_folder_that_somebody_uploaded_by_hand_is_read(bucket, tmp_path):
    (tmp_path / "users.txt").write_text("ana")
    storage.upload(tmp_path / "users.txt", f"{bucket}/data/users.txt")
    assert contents(storage.local_copy(f"{bucket}/data")) == {"users.txt": "ana"}
    assert storage.local_copy(f"{bucket}/data/users.txt").read_text() == "ana", "one file as well"
    (tmp_path / "users.txt").write_text("bob and ana")
    storage.upload(tmp_path / "users.txt", f"{bucket}/data/users.txt")
    assert contents(storage.local_copy(f"{bucket}/data")) == {"users.txt": "bob and ana"}


def test_many_readers_make_one_copy(bucket, folder, monkeypatch):
    storage.publish(folder, f"{bucket}/x")
    count, download = [], folders.download_files
    monkeypatch.setattr(folders, "download_files", lambda *arguments: count.append(1) or download(*arguments))
    found = []
    threads = [threading.Thread(target=lambda: found.append(storage.local_copy(f"{bucket}/x"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(count) == 1


def test_parts_of_several_workers_are_collected(bucket, tmp_path):
    for rank in range(2):
        with storage.adding_to(f"{bucket}/parts/text") as part:
            (part / f"users-{rank}").write_text(str(rank))
    with storage.replacing(f"{bucket}/parts/summary") as draft:
        (draft / "summary.json").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").write_text("of another try")
    storage.collect_files(f"{bucket}/parts", tmp_path / "out")
    names = {"text/users-0": "0", "text/users-1": "1", "summary/summary.json": "{}"}
    assert {name: text for name, text in contents(tmp_path / "out").items() if storage.INDEX not in name} == names
    storage.remove(f"{bucket}/parts")
    assert storage.sizes(f"{bucket}/parts") == {}
    storage.remove(f"{bucket}/parts")


def test_a_name_that_leads_out_of_the_folder_is_refused(bucket, s3_server, folder, tmp_path):
    storage.publish(folder, f"{bucket}/x")
    (tmp_path / "index").write_text(json.dumps({"../../outside": "0"}))
    storage.upload(tmp_path / "index", f"{bucket}/x/{storage.INDEX}")
    with pytest.raises(StorageError, match="outside the folder"):
        storage.local_copy(f"{bucket}/x")
    assert not list(tmp_path.rglob("outside"))


def test_the_uris_query_takes_the_place_of_the_environment(bucket, s3_server, folder, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    address = s3_server.removeprefix("http://")
    uri = f"{bucket}/x?endpoint_override={address}&scheme=http"
    storage.publish(folder, uri)
    assert storage.read_bytes(storage.join(uri, "a.txt")) == b"first"
    storage.open_filesystem.cache_clear()


def test_a_bucket_that_is_not_there(s3_server):
    with pytest.raises(StorageError, match="There is no such bucket") as raised:
        storage.publish(Path(__file__).parent, "s3://nobody-made-this/x")
    assert "s3://nobody-made-this/x" in str(raised.value)
    with pytest.raises(StorageError, match="There is nothing there"):
        storage.local_copy("s3://nobody-made-this/x")


def test_nothing_is_there(bucket):
    with pytest.raises(StorageError, match="There is nothing there"):
        storage.local_copy(f"{bucket}/nothing")
    assert storage.read_bytes(f"{bucket}/nothing") is None


def test_nobody_answers(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    storage.open_filesystem.cache_clear()
    with pytest.raises(StorageError, match="cannot be reached"):
        storage.local_copy(f"{bucket}/x")
    storage.open_filesystem.cache_clear()


def test_refused_credentials_are_told(monkeypatch):
    with pytest.raises(StorageError, match="refuses these credentials") as raised, folders.explain_storage_errors("s3://b/x"):
        raise OSError("When reading: AWS Error ACCESS_DENIED during GetObject operation: no")
    assert "AWS_ACCESS_KEY_ID" in raised.value.fix
    with pytest.raises(OSError, match="No space") as raised, folders.explain_storage_errors("s3://b/x"):
        raise OSError(28, os.strerror(28))
    assert not isinstance(raised.value, PenchantError), "the local disk's trouble is not the store's"


def test_a_secret_in_a_uri_is_refused_and_not_shown():
    with pytest.raises(ConfigError, match="holds a secret") as raised:
        storage.local_copy("s3://KEY:hush@bucket/x")
    assert "hush" not in str(raised.value)
    with pytest.raises(ConfigError, match="not a place that can be reached"):
        storage.local_copy("gopher://bucket/x")
