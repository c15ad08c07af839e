import json
import os
import subprocess

import pyarrow.fs as pafs
import pytest
import torch

from penchant.errors import OutputError
from penchant.runtime.training.checkpoints import CheckpointStorage, read_parts, what_is_wrong, write_part
from penchant.tensors import write_rows, write_tensors


def checkpoint(folder, *, workers=2, value=1.0):
    folder.mkdir(parents=True)
    for rank in range(workers):
        write_part(folder, {"a": torch.full((100,), value + rank)}, rank=rank, world_size=workers)


@pytest.fixture
def storage(tmp_path):
    for number in range(3):
        checkpoint(tmp_path / f"checkpoint_{number:06d}", value=float(number))
    return CheckpointStorage(pafs.LocalFileSystem(), str(tmp_path))


def test_newest_is_taken_without_a_word(storage):
    said = []
    assert storage.newest_whole(said.append) == "checkpoint_000002"
    assert said == []
    assert storage.next_number() == 3
    with storage.open("checkpoint_000002") as folder:
        assert [part["a"][0].item() for part in read_parts(folder)] == [2, 3]


def cut_short(folder):
    path = folder / "worker-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def corrupt(folder):
    path = folder / "worker-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def lose_a_worker(folder):
    (folder / "worker-00001.safetensors").unlink()
    (folder / "worker-00001.json").unlink()


def lose_all(folder):
    for path in folder.iterdir():
        path.unlink()


def cut_fingerprint(folder):
    (folder / "worker-00000.json").write_text('{"workers": 2, "sha')


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut_short, "worker-00001.safetensors is not what was written"),
        (corrupt, "worker-00000.safetensors is not what was written"),
        (lose_a_worker, "it was not finished"),
        (lose_all, "it was not finished"),
        (cut_fingerprint, "a fingerprint cannot be read"),
    ],
)
def test_harm_is_found_and_the_one_before_is_used(storage, tmp_path, harm, said):
    harm(tmp_path / "checkpoint_000002")
    assert what_is_wrong(tmp_path / "checkpoint_000002") == said
    warnings = []
    assert storage.newest_whole(warnings.append) == "checkpoint_000001"
    assert warnings == [f"checkpoint_000002 is not used: {said}. Taken up from checkpoint_000001 instead."]
    assert storage.next_number() == 3, "the name of a damaged checkpoint is not used again"


def test_nothing_whole_is_from_scratch_and_said(storage, tmp_path):
    for folder in tmp_path.iterdir():
        corrupt(folder)
    warnings = []
    assert storage.newest_whole(warnings.append) is None
    assert "the stage starts from scratch" in warnings[0]
    assert CheckpointStorage(pafs.LocalFileSystem(), str(tmp_path / "none")).newest_whole(warnings.append) is None
    assert len(warnings) == 1, "no checkpoint yet is nothing to speak of"


@pytest.mark.parametrize("names", [["checkpoint_000001"], ["checkpoint_000001", "checkpoint_000009"], None])
def test_rays_list_is_dropped_where_it_is_damaged(storage, tmp_path, names):
    path = tmp_path / "checkpoint_manager_snapshot.json"
    text = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name} for name in names or ["a"]]})
    path.write_text(text if names else text[:20])
    warnings = []
    storage.drop_damaged_list(warnings.append)
    assert path.exists() == (names == ["checkpoint_000001"])
    assert len(warnings) == (not path.exists())


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("a small file system can only be mounted by root, where mounting is allowed")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_is_an_error_and_leaves_what_was_there(small_disk):
    write_part(small_disk, {"a": torch.ones(1000)}, rank=0, world_size=1)
    with pytest.raises(OutputError, match="The disk is full"):
        write_part(small_disk, {"a": torch.ones(1_000_000)}, rank=0, world_size=1)
    assert what_is_wrong(small_disk) is None
    with pytest.raises(OutputError, match="The disk is full"), write_rows(small_disk / "rows.safetensors", "a", (10**6, 4)):
        pytest.fail("room was taken before the first row was written")
    assert not list(small_disk.glob("*rows*"))
    write_tensors(small_disk / "more.safetensors", {"a": torch.ones(10)})
