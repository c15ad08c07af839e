"""The reward phase on two data-parallel workers gives what one gives: the same global batch, real processes over gloo."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from penchant.reward.config import HeadSettings, RewardSettings
from penchant.reward.training import RewardData, RewardTrainer, UserTable
from penchant.tensors import read_tensors, write_tensors

STEPS = 10
# Dropout masks belong to a worker, so they are left out here.
SETTINGS = RewardSettings(steps=STEPS, batch_size=30, head=HeadSettings(hidden=8, dropout=0.0))


def train(**parallel) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(0)
    data = RewardData(
        feature_RF=torch.from_numpy(random.normal(size=(50, 6)).astype(np.float32)),
        chosen=random.integers(0, 50, 400),
        rejected=random.integers(0, 50, 400),
        valid=np.arange(400) % 10 == 0,
        users={
            "uniform": None,
            "personalised": UserTable(
                torch.from_numpy(random.normal(size=(20, 4)).astype(np.float32)), random.integers(0, 20, 400)
            ),
        },
    )
    trainer = RewardTrainer(SETTINGS, data, **parallel)
    for _ in range(STEPS):
        trainer.step()
    return trainer.state()


def worker(rank: int, world_size: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=world_size)
    state = train(rank=rank, world_size=world_size, wrap=torch.nn.parallel.DistributedDataParallel)
    if rank == 0:
        write_tensors(Path(out) / "state.safetensors", state)
    dist.destroy_process_group()


@pytest.mark.cluster
@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_give_what_one_gives(tmp_path, world_size):
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(world_size), str(tmp_path)]) for rank in range(world_size)
    ]
    alone = train()
    assert [process.wait(timeout=120) for process in processes] == [0] * world_size
    together = read_tensors(tmp_path / "state.safetensors")
    for key, value in alone.items():
        if ".head." in key:
            assert torch.allclose(value, together[key], rtol=1e-4, atol=1e-6), key


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
