"""What a sweep asks an autoscaled cluster for before it looks whether a trial fits."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from penchant.errors import TrainingError
from penchant.runtime import cluster
from penchant.runtime.training.config import WorkerSettings
from penchant.runtime.tuning import sweep
from penchant.runtime.tuning.space import ResourceSettings
from penchant.runtime.tuning.sweep import Sweep


@pytest.fixture
def at_rest(monkeypatch):
    """A cluster without cores, whose autoscaler brings what it is asked for."""
    there, asked = {}, []

    def request(bundles):
        for bundle in bundles:
            for kind, count in bundle.items():
                there[kind] = there.get(kind, 0) + count
        asked.append(bundles)

    monkeypatch.setattr(sweep.ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(cluster, "request_resources", request)
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.0)
    return asked


def sweep_of(resources, workers):
    made = Sweep.__new__(Sweep)
    made.console = Console(quiet=True)
    made.space = SimpleNamespace(resources=ResourceSettings(**resources))
    made.base = SimpleNamespace(workers=WorkerSettings(**workers))
    return made


def test_a_cluster_at_rest_is_asked_for_what_a_trial_wants(at_rest):
    made = sweep_of({"cpus": 2, "gpus": 1}, {"num_workers": 2, "wait_seconds": 600})
    assert made._group() == (2, 1)
    assert at_rest == [[{"GPU": 1}] * 2, [], [{"CPU": 1}] * 4, []]


def test_gpus_are_asked_for_where_workers_use_them(at_rest):
    assert sweep_of({}, {"use_gpu": True, "wait_seconds": 600})._group() == (1, 1.0)
    assert at_rest == [[{"GPU": 1}], [], [{"CPU": 1}], []]


def test_who_does_not_want_to_wait_is_told_at_once(at_rest):
    with pytest.raises(TrainingError, match="does not fit the cluster's 0"):
        sweep_of({}, {})._group()
    assert at_rest == []
