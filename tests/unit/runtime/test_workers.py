import contextlib
import errno
import socket
from typing import ClassVar

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError

from penchant.config import load_settings
from penchant.errors import ConfigError, DataError, OutputError, TrainingError
from penchant.runtime import cluster
from penchant.runtime.cluster import start_ray
from penchant.runtime.training import workers
from penchant.runtime.training.config import WorkerSettings
from penchant.runtime.training.progress import ProgressLog
from penchant.runtime.training.workers import _cause, choose_workers, run_stage


@pytest.mark.parametrize("given", [True, False])
def test_address_where_nobody_answers_is_told_at_once(given, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(TrainingError, match="Nobody answers") as raised:
        monkeypatch.setenv("RAY_ADDRESS", address)
        start_ray(address if given else None)
    assert (f"--address {address}" if given else f"RAY_ADDRESS={address}") in str(raised.value)


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", True), ("localhost", True), ("203.0.113.7", False), ("nowhere.invalid", False), ("", False)]
)
def test_this_users_token_is_shown_to_clusters_of_this_machine_alone(monkeypatch, host, shown):
    asked = []
    monkeypatch.setattr(cluster, "maybe_enable_token_auth_if_token_available", lambda **named: asked.append(named))
    cluster.show_token(host)
    assert bool(asked) == shown


def test_a_workers_mistake_comes_through_rays_wrapping():
    mistake = DataError("It is wrong.", where="here", fix="Mend it.")
    wrapped = RuntimeError("2 workers failed")
    wrapped.worker_failures = {0: RuntimeError("other"), 1: mistake}
    assert _cause(wrapped, "graph") is mistake
    other = _cause(RuntimeError("first line\nlast line"), "graph")
    assert isinstance(other, TrainingError)
    assert "last line" in str(other)


def test_full_disk_comes_through_rays_wrapping():
    wrapped = RuntimeError("the controller failed")
    wrapped.controller_failure = OSError(errno.ENOSPC, "No space left on device")
    full = _cause(wrapped, "graph")
    assert isinstance(full, OutputError)
    assert "The disk is full" in str(full)
    assert isinstance(_cause(OSError(errno.ECONNRESET, "reset"), "graph"), TrainingError)


def test_fewer_workers_at_least_than_at_most():
    assert load_settings(WorkerSettings, overrides=["min_workers=1", "num_workers=2"]).min_workers == 1
    with pytest.raises(ConfigError, match="min_workers is more than num_workers"):
        load_settings(WorkerSettings, overrides=["min_workers=3", "num_workers=2"])


@pytest.mark.parametrize(
    ("machines", "asked", "given"),
    [
        ([{"CPU": 2}], {}, (1, 2)),
        ([{"CPU": 2}], {"num_workers": 2}, (2, 1)),
        ([{}, {"CPU": 8}, {"CPU": 8}], {}, (1, 8)),
        ([{}, {"CPU": 8}, {"CPU": 8}], {"num_workers": 2}, (2, 8)),
        ([{}, {"CPU": 8}, {"CPU": 4}], {"num_workers": 3}, (3, 2)),
        ([{"CPU": 4}, {"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], {}, (2, 8)),
        ([{"CPU": 64, "GPU": 8}], {}, (8, 8)),
        ([{"CPU": 64, "GPU": 8}], {"num_workers": 2}, (2, 32)),
        ([{"CPU": 8, "GPU": 1}], {"use_gpu": False}, (1, 8)),
    ],
)
def test_workers_share_the_cores_of_the_machine_that_they_are_on(monkeypatch, machines, asked, given):
    total = {kind: sum(each.get(kind, 0) for each in machines) for kind in ("CPU", "GPU")}
    monkeypatch.setattr(workers.ray, "cluster_resources", lambda: total)
    nodes = [{"Alive": True, "Resources": each} for each in machines]
    monkeypatch.setattr(workers.ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 1, "GPU": 1}}])
    group = choose_workers(WorkerSettings(**asked))
    assert (group.num_workers, group.threads) == given


class TrainerThatLacksRoom:
    """In the place of Ray's: a group of more than one worker cannot be had."""

    asked: ClassVar[list[int]] = []

    def __init__(self, loop, *, scaling_config, **_):
        self.num_workers = scaling_config.num_workers

    def fit(self):
        self.asked.append(self.num_workers)
        if self.num_workers > 1:
            raise ControllerError(WorkerGroupStartupTimeoutError(self.num_workers))


@pytest.mark.parametrize(("min_workers", "cores_later", "asked"), [(1, 1, [3, 1]), (2, 1, [3]), (1, 3, [3]), (None, 1, [3])])
def test_a_group_that_may_be_smaller_is_made_anew_of_what_there_is(monkeypatch, tmp_path, min_workers, cores_later, asked):
    cores = iter([3, 3] if min_workers else [3])
    monkeypatch.setattr(workers.ray, "cluster_resources", lambda: {"CPU": next(cores, cores_later)})
    monkeypatch.setattr(workers, "TorchTrainer", TrainerThatLacksRoom)
    monkeypatch.setattr(TrainerThatLacksRoom, "asked", [])
    monkeypatch.delenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", raising=False)
    log = ProgressLog(tmp_path / "log.jsonl")
    settings = WorkerSettings(num_workers=3, min_workers=min_workers, threads=1)
    ends = contextlib.nullcontext() if asked[-1] == 1 else pytest.raises(TrainingError, match="stage failed")
    with ends:
        run_stage(print, {"log": str(log.path)}, name="graph", storage=tmp_path, settings=settings)
    assert TrainerThatLacksRoom.asked == asked
    said = [record["warning"] for record in log.read()]
    assert said == (["There is room for 1 of 3 workers. The stage goes on with these."] if asked[-1] == 1 else [])


@pytest.mark.parametrize(("on_look", "every"), [(None, 20.0), (print, None)])
def test_a_stage_that_reports_its_looks_keeps_no_checkpoints_and_workers_get_what_is_asked(monkeypatch, tmp_path, on_look, every):
    started = []

    class TrainerThatTells:
        def __init__(self, loop, **asked):
            started.append(asked)

        def fit(self):
            pass

    monkeypatch.setattr(workers.ray, "cluster_resources", lambda: {"CPU": 8})
    monkeypatch.setattr(workers, "TorchTrainer", TrainerThatTells)
    settings = WorkerSettings(num_workers=2, threads=3)
    for resources in (None, {"CPU": 3.0, "GPU": 0.0}):
        config = {"log": str(tmp_path / "log.jsonl")}
        options = {"settings": settings, "on_look": on_look, "resources_per_worker": resources}
        run_stage(print, config, name="reward", storage=tmp_path, **options)
    assert [asked["train_loop_config"]["checkpoint_seconds"] for asked in started] == [every, every]
    assert [asked["scaling_config"].num_cpus_per_worker for asked in started] == [1, 3.0]


@pytest.mark.parametrize(
    ("deaths", "ends"), [(2, contextlib.nullcontext()), (3, pytest.raises(TrainingError, match="stage failed"))]
)
def test_a_worker_that_dies_while_the_controller_talks_to_it_is_one_more_try(monkeypatch, tmp_path, deaths, ends):
    left = [deaths]

    class TrainerWhoseWorkersDie:
        def __init__(self, loop, **_):
            pass

        def fit(self):
            left[0] -= 1
            if left[0] >= 0:
                raise ControllerError(ActorDiedError())

    monkeypatch.setattr(workers.ray, "cluster_resources", lambda: {"CPU": 2})
    monkeypatch.setattr(workers, "TorchTrainer", TrainerWhoseWorkersDie)
    log = ProgressLog(tmp_path / "log.jsonl")
    with ends:
        run_stage(
            print, {"log": str(log.path)}, name="graph", storage=tmp_path, settings=WorkerSettings(max_failures=2, threads=1)
        )
    assert [record["warning"][:16] for record in log.read()] == ["A worker is lost"] * 2
