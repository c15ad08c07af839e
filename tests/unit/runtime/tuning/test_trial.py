"""A trial with a group of workers: what its stages are given, and what it leaves."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup

from penchant.errors import TrainingError
from penchant.runtime.tuning import trial as module
from penchant.runtime.tuning.candidates import base_settings
from penchant.runtime.tuning.space import Space
from penchant.runtime.tuning.sweep import Sweep
from penchant.runtime.tuning.trial import GroupsRelease, TrialPlan, _report_of_group, _Trial

RATE = "reward.learning_rate"
SPACE = {"stage": "reward", "parameters": {RATE: {"choice": [0.001, 0.01]}}, "settings": {"experts": {"num_experts": 0}}}


@pytest.fixture
def plan(tmp_path):
    space = Space.model_validate(SPACE)
    base = base_settings(space, None, ["workers.num_workers=2"], where="here")
    worker = {"CPU": 3.0, "GPU": 0.0}
    places = {"out": tmp_path, "checkpoints": str(tmp_path / "checkpoints"), "prepared": str(tmp_path / "prepared")}
    return TrialPlan(**places, dataset="planted", space=space, base=base, worker=worker)


def run(plan, monkeypatch, callbacks, stage_ends):
    stages = []

    def run_stage(loop, config, *, name, storage, **options):
        kept = Path(storage) / name
        kept.mkdir(parents=True)
        stages.append((loop.__name__, kept, options | {"log": config["log"]}))
        stage_ends(loop)

    monkeypatch.setattr(module, "run_stage", run_stage)
    monkeypatch.setattr(module, "keep_best", lambda candidates, settings, out: out.mkdir(parents=True))
    _Trial(plan, {RATE: 0.01}, print, callbacks).run()
    return stages


def test_a_group_is_given_its_resources_and_what_ray_train_kept_of_it_is_deleted(plan, monkeypatch, tmp_path):
    callback = object()
    graph, reward = run(plan, monkeypatch, [callback], lambda loop: None)
    assert (graph[0], reward[0]) == ("graph_loop", "reward_loop")
    for _, kept, options in (graph, reward):
        assert options["resources_per_worker"] == plan.worker
        assert not kept.exists()
        assert not kept.parent.exists()
        options["log"].write(warning="A group that is being ended says so.")
    assert not (tmp_path / "scratch" / kept.parent.name).exists()
    assert graph[2]["on_look"] is None
    assert graph[2]["callbacks"] == ()
    assert graph[2]["settings"].max_failures == plan.base.workers.max_failures, "it goes on from its checkpoints"
    assert reward[2]["on_look"] is not None
    assert reward[2]["callbacks"] == [callback]
    assert reward[2]["settings"].max_failures == 0, "it has none: Ray Tune begins the trial again"


def test_a_trial_that_fails_leaves_nothing_either(plan, monkeypatch, tmp_path):
    def fails(loop):
        raise TrainingError("It failed.", where="here", fix="Mend it.")

    with pytest.raises(TrainingError, match="It failed"):
        run(plan, monkeypatch, [object()], fails)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_worker_in_the_trials_own_process_uses_what_the_trial_has(plan, monkeypatch):
    for _, _, options in run(plan, monkeypatch, (), lambda loop: None):
        assert options["in_process"]
        assert options["resources_per_worker"] is None


@pytest.mark.parametrize("end", ["on_trial_complete", "on_trial_recover", "on_trial_error"])
def test_what_the_workers_of_a_trial_hold_is_given_back_when_ray_tune_ends_it(monkeypatch, end):
    reports, released = [], []
    group = PlacementGroup(PlacementGroupID.from_random())
    monkeypatch.setattr(module.ray.train, "report", reports.append)
    monkeypatch.setattr(module, "get_current_placement_group", lambda: group)
    monkeypatch.setattr(module, "remove_placement_group", lambda removed: released.append(removed.id))
    _report_of_group({"step": 1})
    assert reports[0]["step"] == 1
    for last_result in (reports[0], {"step": 1}, None):  # of a group, of a worker alone, before any look
        getattr(GroupsRelease(), end)(iteration=1, trials=[], trial=SimpleNamespace(last_result=last_result))
    assert released == [group.id]


@pytest.mark.parametrize(("workers", "gpus", "shares"), [(2, 0.5, True), (1, 0.5, False), (2, 1, False)])
def test_workers_of_one_trial_share_no_gpu(monkeypatch, workers, gpus, shares):
    monkeypatch.setattr("penchant.runtime.tuning.sweep.ray.cluster_resources", lambda: {"CPU": 8, "GPU": 2})
    space = Space.model_validate(SPACE | {"resources": {"cpus": 1, "gpus": gpus}})
    base = base_settings(space, None, [f"workers.num_workers={workers}"], where="here")
    sweep = SimpleNamespace(space=space, base=base, _wait=lambda: None)
    if shares:
        with pytest.raises(TrainingError, match="cannot share a GPU"):
            Sweep._group(sweep)
    else:
        assert Sweep._group(sweep) == (workers, gpus)
