"""N workers give what one gives: real processes over gloo, users sharded, responses replicated."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from penchant.artifacts import write_json
from penchant.graph.collectives import current
from penchant.graph.config import CandidateSettings, EncoderSettings, OptimizationSettings
from penchant.graph.preference_graph import PreferenceShard, user_range
from penchant.graph.training import GraphTrainer
from penchant.tensors import read_tensors, write_tensors

U, R, C, F = 23, 17, 300, 5
SETTINGS = {
    "published": {"response_init": "id", "user_init": "id"},
    "copl": {"response_init": "id+text"},
    "neighbour projection": {"neighbour_projection": True},
    "lightgcn": {"layer": "lightgcn", "response_init": "id", "user_init": "id"},
    "sage": {"layer": "sage"},
    "gat": {"layer": "gat", "response_init": "id+text", "user_init": "id"},
    "mixture": {"layer": "mixture", "num_layers": 1},
    "batches": {"response_init": "id", "user_init": "id"},
}
OPTIMIZATION = {"batches": {"supervision_share": 0.0, "batch_size": 70, "num_epochs": 100, "embedding_l2": 0.01}}
"""Of those that are not trained as the others."""


def make_trainer(name: str, dtype: torch.dtype) -> GraphTrainer:
    random = np.random.default_rng(7)
    user, chosen, rejected = (random.integers(size, size=C) for size in (U, R, R))
    features = torch.from_numpy(random.normal(size=(R, F)))
    collective = current()
    start, stop = user_range(collective.rank, collective.world_size, U)
    own = (user >= start) & (user < stop)
    valid = np.arange(C) % 10 == 0
    train_shard, valid_shard = (
        PreferenceShard.build(
            user[own & part], chosen[own & part], rejected[own & part], np.flatnonzero(own & part),
            first_user=start, num_users=stop - start, num_responses=R,
        )
        for part in (~valid, valid)
    )  # fmt: skip
    settings = CandidateSettings(
        encoder=EncoderSettings(**({"dim": 6, "num_layers": 2} | SETTINGS[name])),
        optimization=OptimizationSettings(edge_dropout=0.1, **OPTIMIZATION.get(name, {})),
    )
    return GraphTrainer(settings, train_shard, valid_shard, features=features, collective=collective, seed=4, dtype=dtype)


def whole(trainer: GraphTrainer, name: str, value: torch.Tensor) -> torch.Tensor:
    """A user's rows of all workers, or the value itself."""
    if name != "user_rows" or trainer.collective.world_size == 1:
        return value
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value.tolist())
    return torch.tensor([row for part in gathered for row in part], dtype=value.dtype)


def measure(out: str) -> None:
    """Five float64 steps, and the first float32 step's loss and gradients, of every kind of encoder."""
    torch.set_num_threads(1)
    losses = {}
    tensors = {}
    for name in SETTINGS:
        trainer = make_trainer(name, torch.float64)
        losses[name] = [trainer.step() for _ in range(5)] + [trainer.validate()]
        for key, value in trainer.encoder.named_parameters():
            tensors[f"{name}/double/{key}"] = whole(trainer, key, value.detach())
        embeddings = trainer.embeddings(folds=2)
        for key, value in (("users", embeddings.user), ("fold", embeddings.user_folds[1])):
            tensors[f"{name}/double/{key}"] = whole(trainer, "user_rows", value)
        single = make_trainer(name, torch.float32)
        losses[f"{name}/float"] = [single.step()]
        for key, value in single.encoder.named_parameters():
            tensors[f"{name}/float/{key}"] = whole(single, key, value.grad)
    if not dist.is_initialized() or dist.get_rank() == 0:
        write_tensors(Path(out) / "tensors.safetensors", tensors)
        write_json(Path(out) / "losses.json", losses)


def worker(rank: int, world_size: int, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=world_size)
    measure(out)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    measure(str(folder))
    return read_tensors(folder / "tensors.safetensors"), json.loads((folder / "losses.json").read_text())


@pytest.mark.cluster
@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_give_what_one_gives(alone, tmp_path, world_size):
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(world_size), str(tmp_path)]) for rank in range(world_size)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * world_size
    tensors, losses = read_tensors(tmp_path / "tensors.safetensors"), json.loads((tmp_path / "losses.json").read_text())
    assert set(tensors) == set(alone[0])
    for name, values in losses.items():
        assert values == pytest.approx(alone[1][name], rel=1e-5 if name.endswith("float") else 1e-9), name
    for name, value in tensors.items():
        expected = alone[0][name]
        # Relative by norm. A user's float64 rows are compared where the loss touched them.
        difference = (value - expected).norm() / expected.norm().clamp(min=1e-12)
        assert difference < (1e-5 if "/float/" in name else 1e-9), name


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
