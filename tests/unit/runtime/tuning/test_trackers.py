"""What tracks a sweep: asked for by its settings, told of every trial, no part of what the sweep is."""

import pickle
from types import SimpleNamespace

import pytest
from rich.console import Console

from penchant.artifacts import fingerprint, read_json, write_json
from penchant.config import load_settings, validate_settings
from penchant.errors import OutputError
from penchant.runtime.training.config import FitSettings, TrackingSettings
from penchant.runtime.tuning import trackers
from penchant.runtime.tuning.journal import LOOK
from penchant.runtime.tuning.space import Space
from penchant.runtime.tuning.sweep import Sweep
from penchant.runtime.tuning.trackers import RUN, TrialTrackers
from penchant.storage import MirroredFolder

DEPTH = "graph.candidates.*.encoder.num_layers"
SPACE = {
    "stage": "graph",
    "parameters": {DEPTH: {"choice": [1, 2]}},
    "settings": {"graph": {"candidates": {"swept": {}}}},
}
RESULT = dict.fromkeys(LOOK, 0.5) | {"step": 8, "training_iteration": 3, "config": {DEPTH: 2}}


class Recorder:
    """What Ray's own callbacks are, and fails when it is told to."""

    def __init__(self, fails=False):
        self.told, self.fails = [], fails

    def __getattr__(self, name):
        def hook(**given):
            if self.fails:
                raise ConnectionError("nobody there")
            self.told.append((name, given))

        return hook


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A sweep's trackers: one of TensorBoard's name and one that fails; and what is asked for them."""
    write_json(tmp_path / "sweep" / RUN, {"tracking": {"tensorboard": True}})
    well, ill, asked = Recorder(), type("Ill", (Recorder,), {})(fails=True), []
    monkeypatch.setattr(trackers, "tune_callbacks", lambda settings, name: asked.append((settings, name)) or [well, ill])
    return TrialTrackers(MirroredFolder(tmp_path / "sweep", identity=RUN, growing=())), well, asked


def hooks(own, trial):
    own.setup(stop=None, num_samples=2)
    own.on_trial_start(0, [trial], trial)
    own.on_trial_result(1, [trial], trial, dict(RESULT))
    own.on_trial_complete(2, [trial], trial)
    own.on_experiment_end([trial])


def test_each_trial_is_told_of_under_names_that_trackers_take(made, caplog):
    own, well, asked = made
    hooks(own, SimpleNamespace(trial_id="a", config={DEPTH: 2}, local_path="/there"))
    assert asked == [(TrackingSettings(tensorboard=True), "sweep")]
    assert [name for name, _ in well.told] == [
        "setup", "on_trial_start", "on_trial_result", "on_trial_complete", "on_experiment_end",
    ]  # fmt: skip
    started, looked = well.told[1][1]["trial"], well.told[2][1]
    assert started.config == {"graph.candidates.-.encoder.num_layers": 2}
    assert started is looked["trial"]
    assert started.local_path == "/there"
    assert looked["result"]["accuracy"] == 0.5
    assert (looked["result"]["timesteps_total"], looked["result"]["training_iteration"]) == (8, 3)
    assert "config" not in looked["result"]
    assert caplog.text.count("the sweep goes on without it") == 1, "and it was left out then"


def test_a_trial_that_failed_before_it_began_is_none_of_theirs(made):
    own, well, _ = made
    own.setup()
    own.on_trial_error(0, [], SimpleNamespace(trial_id="a", config={}))
    assert [name for name, _ in well.told] == ["setup"]


def test_a_sweep_that_is_taken_up_is_tracked_as_it_is_asked_for_now(made, tmp_path):
    own, _, asked = made
    hooks(own, SimpleNamespace(trial_id="a", config={}))
    write_json(tmp_path / "sweep" / RUN, {"tracking": {"wandb": "project"}})
    hooks(pickle.loads(pickle.dumps(own)), SimpleNamespace(trial_id="b", config={}))
    assert [settings for settings, _ in asked] == [TrackingSettings(tensorboard=True), TrackingSettings(wandb="project")]


def sweep_of(planted, backbone, out, *overrides, **space):
    base = load_settings(
        FitSettings, values=SPACE["settings"], overrides=[f"backbone.name={backbone}", "experts.num_experts=0", *overrides]
    )
    return Sweep(planted[0], validate_settings(Space, SPACE | space), base, out, Console(quiet=True))


def test_who_watches_does_not_make_it_another_sweep(planted, tiny_backbone, tmp_path):
    out = tmp_path / "sweep"
    first = sweep_of(planted, tiny_backbone, out)
    identity = read_json(out / RUN)
    again = sweep_of(planted, tiny_backbone, out, "tracking.tensorboard=true")
    assert read_json(out / RUN) == identity | {"tracking": {"tensorboard": True, "mlflow": None, "wandb": None}}
    callbacks = again._run_config().callbacks
    assert any(isinstance(callback, TrialTrackers) for callback in callbacks)
    with pytest.raises(OutputError, match="another space or settings"):
        sweep_of(planted, tiny_backbone, out, "reward.steps=61")
    assert first.space == again.space


@pytest.mark.parametrize("before", [[], ["tracking.tensorboard=true"]])
def test_a_sweep_from_when_who_watches_was_a_part_of_it_is_taken_up(planted, tiny_backbone, tmp_path, before):
    out = tmp_path / "sweep"
    made = sweep_of(planted, tiny_backbone, out, *before)
    asked = [made.space.model_dump(mode="json"), made.base.model_dump(mode="json", exclude={"workers"})]
    found = read_json(out / RUN)
    found.pop("tracking")
    write_json(out / RUN, found | {"sweep": fingerprint(asked)})
    sweep_of(planted, tiny_backbone, out, *before)
    with pytest.raises(OutputError, match="another space or settings"):
        sweep_of(planted, tiny_backbone, out, *before, seed=5)
