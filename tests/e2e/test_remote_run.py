"""A fit whose data and run lie in a bucket, on a cluster whose nodes share nothing else; then taken up on another machine."""

import json
import os
import subprocess
import sys

import pytest

from penchant import storage
from penchant.data.planted import PlantedWorld, save_planted

pytestmark = [pytest.mark.e2e, pytest.mark.cluster, pytest.mark.slow]
SMALL = (
    "backbone.max_tokens=64", "workers.num_workers=2", "workers.threads=1", "workers.checkpoint_seconds=1",
    "reward.steps=100", "evaluation.resamples=20",
    "graph.candidates={text: {optimization: {max_steps: 20}}}", "tracking.tensorboard=true",
    "experts.num_experts=0",
)  # fmt: skip


@pytest.fixture
def cluster(bucket, tmp_path):
    """A head that only drives, and a node for the workers with a cache of its own: two machines, as far as the disk goes."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.add_node(num_cpus=2, env_vars={"PENCHANT_CACHE": str(tmp_path / "node")})
    yield made
    made.shutdown()


def test_a_run_in_a_bucket(cluster, bucket, tiny_backbone, tmp_path):
    save_planted(PlantedWorld(users=40, unseen_users=8, prompts=30, comparisons_per_user=10, seed=3), tmp_path / "data")
    storage.add_files(tmp_path / "data", f"{bucket}/data")
    out = f"{bucket}/runs/fit"

    def fit(machine):
        command = [sys.executable, "-m", "penchant.cli", "fit", "--data", f"{bucket}/data", "--out", out]
        command += ["--address", cluster.address, f"backbone.name={tiny_backbone}", *SMALL]
        environment = os.environ | {"COLUMNS": "200", "PENCHANT_CACHE": str(tmp_path / machine)}
        result = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    said = fit("first")
    assert f"Report: {out}/report.html" in said
    metrics = json.loads(storage.read_bytes(f"{out}/metrics.json"))
    assert [record["step"] for record in metrics["graph"]["history"] if "step" in record][-1] == 20
    there = storage.sizes(out)
    assert {"bundle/manifest.json", "progress/graph.jsonl", "graph/users.safetensors"} <= set(there)
    assert any(name.startswith("tensorboard/graph/") for name in there)
    assert any(name.startswith("checkpoints/") for name in there)
    assert not any(name.startswith("work/") for name in there), "what workers left for the driver is cleared away"
    assert (tmp_path / "node" / "remote").is_dir(), "the workers' node fetched the data by itself"
    assert not list((tmp_path / "node").glob("runs/*"))

    said = fit("second")
    assert "Graph stage" not in said, "what the first machine has done is not done again"
    assert json.loads(storage.read_bytes(f"{out}/metrics.json"))["accuracy"] == metrics["accuracy"]

    score = [sys.executable, "-m", "penchant.cli", "score", "--bundle", f"{out}/bundle", "--user", "user-0000"]
    score += ["--prompt", "Explain tides.", "--response", "One.", "--response", "Two!", "--json"]
    answer = subprocess.run(score, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["bundle"] == metrics["run"]["bundle"]
