import os
import subprocess
import sys

import pytest
import torch

from penchant import tensors
from penchant.errors import ArtifactError, OutputError
from penchant.tensors import load_optimizer_tensors, optimizer_tensors, read_tensors, write_tensors


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_as_safetensors_tells_it(tmp_path, monkeypatch):
    def onto_a_full_disk(_, path):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr(tensors, "save_file", onto_a_full_disk)
    with pytest.raises(OutputError, match="disk is full"):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_damaged_tensors_are_named(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(100)})
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ArtifactError, match=r"a\.safetensors: It is damaged"):
        read_tensors(tmp_path / "a.safetensors")
    with pytest.raises(ArtifactError, match="no such file"):
        read_tensors(tmp_path / "b.safetensors")


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
    load_optimizer_tensors(names, optimizers[1], optimizer_tensors(names, optimizers[0]))
    step(0)
    step(1)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("room", ["cli", "client", "data", "store"])
def test_what_needs_no_tensor_loads_no_torch(room):
    """`penchant --help`, and every mistake in a path, would wait for it."""
    script = f"import sys, penchant.{room}; sys.exit(any(name in sys.modules for name in ('torch', 'ray')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
