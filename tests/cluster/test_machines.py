"""Several machines (Ray's own pretended ones): workers share them."""

import json

import pytest
import ray
from ray.cluster_utils import Cluster

from penchant.runtime.cluster import start_ray
from penchant.runtime.training.config import WorkerSettings
from penchant.runtime.training.workers import run_stage

pytestmark = pytest.mark.cluster


@pytest.fixture
def machines():
    """A head without a core, and two machines with three cores each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=3)
    start_ray(cluster.address)
    cluster.wait_for_nodes()
    yield
    ray.shutdown()
    cluster.shutdown()


def say_where(config):
    context = ray.train.get_context()
    there = {"machine": ray.get_runtime_context().get_node_id(), "threads": config["threads"]}
    (config["folder"] / f"{context.get_world_rank()}.json").write_text(json.dumps(there))


def test_workers_are_spread_over_machines_and_share_the_cores_of_each(machines, tmp_path):
    settings = WorkerSettings(num_workers=2, use_gpu=False)
    config = {"folder": tmp_path, "log": str(tmp_path / "log.jsonl")}
    run_stage(say_where, config, name="where", storage=tmp_path / "checkpoints", settings=settings)
    found = [json.loads(path.read_text()) for path in tmp_path.glob("?.json")]
    assert len({each["machine"] for each in found}) == len(found) == 2
    assert {each["threads"] for each in found} == {3}
