import errno
import json
import math
import os

import pytest
import torch

from penchant import artifacts
from penchant.artifacts import Manifest, list_files, read_json, read_tensors, replace_folder, write_json, write_tensors
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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_has_no_word_for_is_not_written(tmp_path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": [number]})
    assert not list(tmp_path.iterdir())


def test_full_disk_as_safetensors_tells_it(tmp_path, monkeypatch):
    def onto_a_full_disk(tensors, path):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr(artifacts, "save_file", onto_a_full_disk)
    with pytest.raises(OutputError, match="disk is full"):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"a\.json: It is not JSON"):
        read_json(tmp_path / "a.json")
    write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(100)})
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ArtifactError, match=r"a\.safetensors: It is damaged"):
        read_tensors(tmp_path / "a.safetensors")
    with pytest.raises(ArtifactError, match="no such file"):
        read_tensors(tmp_path / "b.safetensors")


def test_manifest_refuses_what_is_no_bundle_or_newer_or_altered(tmp_path):
    with pytest.raises(ArtifactError, match="not a bundle"):
        Manifest.read(tmp_path)
    write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(3)})
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


def test_optimizer_state_goes_through_tensors():
    torch.manual_seed(0)
    models = [torch.nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.AdamW(model.parameters()) for model in models]

    def step(number):
        optimizers[number].zero_grad()
        models[number](torch.ones(1, 3)).square().sum().backward()
        optimizers[number].step()

    step(0)
    models[1].load_state_dict(models[0].state_dict())
    names = [name for name, _ in models[0].named_parameters()]
    artifacts.load_optimizer_tensors(names, optimizers[1], artifacts.optimizer_tensors(names, optimizers[0]))
    step(0)
    step(1)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
