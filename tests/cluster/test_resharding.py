"""The graph stage taken up with another number of workers gives what it gives with one: real processes over gloo, float64."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from penchant.graph.collectives import current
from penchant.graph.config import CandidateSettings, EncoderSettings, OptimizationSettings
from penchant.graph.preference_graph import PreferenceShard, user_range
from penchant.graph.training import GraphTrainer
from penchant.runtime.training.checkpoints import read_parts, write_part
from penchant.runtime.training.graph_stage import _own_state

U, R, C, F = 23, 17, 300, 5
SETTINGS = CandidateSettings(
    encoder=EncoderSettings(dim=6, num_layers=2, response_init="id+text", user_init="id"),
    optimization=OptimizationSettings(edge_dropout=0.1, max_steps=12, evaluate_every=2, patience=100),
)


def make_trainer() -> GraphTrainer:
    random = np.random.default_rng(7)
    user, chosen, rejected = (random.integers(size, size=C) for size in (U, R, R))
    features = torch.from_numpy(random.normal(size=(R, F)))
    collective = current()
    start, stop = user_range(collective.rank, collective.world_size, U)
    own, valid = (user >= start) & (user < stop), np.arange(C) % 10 == 0
    shards = (
        PreferenceShard.build(
            user[own & part], chosen[own & part], rejected[own & part], np.flatnonzero(own & part),
            first_user=start, num_users=stop - start, num_responses=R,
        )
        for part in (~valid, valid)
    )  # fmt: skip
    return GraphTrainer(SETTINGS, *shards, features=features, collective=collective, seed=4, dtype=torch.float64)


def part_of_the_run(source: Path | None, until: int, out: Path) -> None:
    """From the checkpoint in `source`, if any, to a step; leaves a checkpoint in `out`."""
    torch.set_num_threads(1)
    trainer = make_trainer()
    rank, world_size = trainer.collective.rank, trainer.collective.world_size
    if source is not None:
        trainer.load_state(_own_state(read_parts(source), rank, world_size, U))
    for progress in trainer.run():
        if progress.step == until:
            break
    write_part(out, trainer.state(), rank=rank, world_size=world_size)


def worker(rank: int, world_size: int, meet: str, source: str, until: int, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world_size)
    part_of_the_run(Path(source) if source != "-" else None, until, Path(out))
    dist.destroy_process_group()


@pytest.mark.cluster
def test_run_with_changing_numbers_of_workers_is_the_run_with_one(tmp_path):
    part_of_the_run(None, 12, tmp_path / "alone")
    source = "-"
    for world_size, until in ((2, 4), (3, 8)):
        out = tmp_path / str(until)
        command = [sys.executable, __file__, str(world_size), str(tmp_path / f"meet-{until}"), source, str(until), str(out)]
        processes = [subprocess.Popen([*command, str(rank)]) for rank in range(world_size)]
        assert [process.wait(timeout=120) for process in processes] == [0] * world_size
        source = str(out)
    part_of_the_run(Path(source), 12, tmp_path / "changing")
    (expected,), (found,) = read_parts(tmp_path / "alone"), read_parts(tmp_path / "changing")
    assert set(found) == set(expected)
    assert any("best.user_rows" in name for name in found)
    assert any(name.startswith("optimizer.user_rows") for name in found)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert (found[name] - value).norm() <= 1e-9 * value.norm().clamp(min=1e-12), name


if __name__ == "__main__":
    world_size, meet, source, until, out, rank = sys.argv[1:]
    worker(int(rank), int(world_size), meet, source, int(until), out)
