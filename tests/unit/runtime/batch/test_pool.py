"""Which pool is chosen on clusters that are played: machines with so many cores, of which so many are free."""

import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from penchant.errors import TrainingError
from penchant.runtime import cluster
from penchant.runtime.batch import pool
from penchant.runtime.batch.config import BatchSettings
from penchant.runtime.batch.pool import Pool, choose_pool

QUIET = Console(quiet=True)


class Machines:
    """Cores of each machine, and those that are free; this process runs on the first."""

    def __init__(self):
        self.cores, self.free, self.gpus, self.asked, self.coming = [], [], [], [], None

    def set(self, cores, free=None, gpus=None):
        self.cores, self.free, self.gpus = cores, free or cores, gpus or [0] * len(cores)

    def nodes(self):
        places = enumerate(zip(self.cores, self.gpus, strict=True))
        return [
            {"NodeID": str(number), "Alive": True, "Resources": {"CPU": cores, "GPU": gpus} if cores else {}}
            for number, (cores, gpus) in places
        ]

    def available(self):
        return {str(number): {"CPU": free} if free else {} for number, free in enumerate(self.free)}

    def request(self, bundles):
        """An autoscaler: brings what it was told to bring, once it is asked."""
        self.asked.append(len(bundles))
        if bundles and self.coming:
            self.set(**self.coming)


@pytest.fixture
def machines(monkeypatch):
    made = Machines()
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setattr(pool.ray, "nodes", made.nodes)
    monkeypatch.setattr(pool.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "0"))
    monkeypatch.setattr(pool, "available_resources_per_node", made.available)
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": sum(made.cores), "GPU": sum(made.gpus)})
    monkeypatch.setattr(cluster, "request_resources", made.request)
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.0)
    return made


def hold(monkeypatch, cores):
    """Says, as Ray does to a submitted job, what its own process holds."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"driver_cpus": str(cores)}}))


@pytest.mark.parametrize(
    ("cores", "free", "settings", "chosen"),
    [
        ([8], None, {}, (1, 8, 8)),
        ([8, 8], None, {}, (2, 8, 8)),
        ([0, 8], None, {}, (1, 8, 8)),  # a head without cores
        ([8, 4], None, {}, (2, 4, 4)),
        ([8], None, {"num_workers": 3}, (3, 2, 2)),
        ([8, 8], None, {"threads": 2}, (2, 2, 2)),
        ([2], [1], {}, (1, 1, 1)),  # the job's own process, or another job, holds one
        ([2], [1], {"threads": 2}, (1, 2, 1)),
        ([2], [1], {"num_workers": 2}, (2, 1, 1)),
        ([16, 16, 16], [16, 16, 1], {}, (2, 16, 16)),  # one busy machine does not slow the others down
        ([16, 16], [15, 16], {}, (2, 15, 15)),
    ],
)
def test_workers_ask_for_no_more_cores_than_are_free(machines, cores, free, settings, chosen):
    machines.set(cores, free)
    number, threads, asked = chosen
    assert choose_pool(BatchSettings(**settings), QUIET) == Pool(number, threads, use_gpu=False, cores=asked)


def test_a_worker_with_a_gpu_asks_for_one_core(machines):
    machines.set([16, 8], gpus=[2, 0])
    assert choose_pool(BatchSettings(), QUIET) == Pool(2, 8, use_gpu=True, cores=1)


def test_it_is_said_that_others_hold_all_cores(machines, capsys):
    machines.set([8], [0])
    assert choose_pool(BatchSettings(), Console()) == Pool(1, 1, use_gpu=False, cores=1)
    assert "No core is free now" in capsys.readouterr().out


def test_the_jobs_own_process_does_not_wait_for_itself(machines, monkeypatch):
    hold(monkeypatch, 2.0)
    machines.set([2], [0])
    with pytest.raises(TrainingError, match="no core to work on but the 2 of the job's own process"):
        choose_pool(BatchSettings(), QUIET)
    machines.set([2, 4], [0, 4])
    assert choose_pool(BatchSettings(), QUIET) == Pool(1, 4, use_gpu=False, cores=4)


def test_a_cluster_at_rest_is_asked_and_waited_for(machines):
    machines.set([0])
    with pytest.raises(TrainingError, match="no core to work on") as error:
        choose_pool(BatchSettings(), QUIET)
    assert "batch.wait_seconds" in str(error.value)
    assert machines.asked == []
    machines.coming = {"cores": [0, 4, 4]}
    assert choose_pool(BatchSettings(wait_seconds=600, num_workers=2), QUIET) == Pool(2, 4, use_gpu=False, cores=4)
    assert machines.asked == [2, 0], "the request is taken back"


def test_gpus_are_waited_for_where_they_are_asked_for(machines):
    machines.set([2])
    machines.coming = {"cores": [2, 8], "gpus": [0, 1]}
    assert choose_pool(BatchSettings(wait_seconds=600, use_gpu=True), QUIET) == Pool(1, 8, use_gpu=True, cores=1)


def test_the_cores_of_the_jobs_own_process_are_no_workers(machines, monkeypatch):
    hold(monkeypatch, 2.0)
    machines.set([2], [0])
    machines.coming = {"cores": [2, 4], "free": [0, 4]}
    assert choose_pool(BatchSettings(wait_seconds=600), QUIET) == Pool(1, 4, use_gpu=False, cores=4)
    assert machines.asked == [3, 0]


def test_ray_counts_the_cores_that_the_pool_says(monkeypatch):
    given = {}

    class Items:
        def map_batches(self, worker, **options):
            given.update(options)
            return SimpleNamespace(iter_rows=lambda: iter([]))

    monkeypatch.setattr(pool.ray.data, "from_items", lambda items, **_: Items())
    assert list(pool.work_off([{"number": 0}], object, {}, Pool(1, 2, use_gpu=False, cores=1))) == []
    assert (given["num_cpus"], given["num_gpus"]) == (1, 0)
