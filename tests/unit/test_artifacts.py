import errno
import json
import math
import os

import pytest

from penchant import artifacts
from penchant.artifacts import Manifest, list_files, read_json, replace_folder, write_json
from penchant.errors import ArtifactError, OutputError


def manifest(folder):
    return Manifest(name="n", dataset="d", backbone={}, graph={}, reward={}, counts={}, files=list_files(folder))


def test_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with replace_folder(target) as draft:
        (draft / "a").write_text("old")
    with pytest.raises(RuntimeError), replace_folder(target) as draft:
        (draft / "a").write_text("half")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    with replace_folder(target) as draft:
        (draft / "b").write_text("new")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing half-written is left"


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written")])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, number, said):
    path = tmp_path / "values.json"
    write_json(path, {"old": True})

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(artifacts.os, "fsync", refuse)
    with pytest.raises(OutputError, match=said):
        write_json(path, {"new": True})
    assert read_json(path) == {"old": True}
    assert [found.name for found in tmp_path.iterdir()] == ["values.json"]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_has_no_word_for_is_not_written(tmp_path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": [number]})
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"a\.json: It is not JSON"):
        read_json(tmp_path / "a.json")


def test_manifest_refuses_what_is_no_bundle_or_newer_or_altered(tmp_path):
    with pytest.raises(ArtifactError, match="not a bundle"):
        Manifest.read(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"one")
    manifest(tmp_path).write(tmp_path)
    assert Manifest.read(tmp_path, verify=True).name == "n"
    (tmp_path / "a.safetensors").write_bytes(b"other")
    assert Manifest.read(tmp_path).name == "n"
    with pytest.raises(ArtifactError, match="not the file that was written"):
        Manifest.read(tmp_path, verify=True)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        Manifest.read(tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text())
    for change, said in (({"format": 99}, "format 99"), ({"extra": 1}, "damaged")):
        write_json(tmp_path / "manifest.json", values | change)
        with pytest.raises(ArtifactError, match=said):
            Manifest.read(tmp_path)
