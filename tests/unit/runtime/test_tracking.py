"""What tracks a run: fed from its own records, found again on resuming, and never in the run's way."""

import importlib.util
import logging
import socket

import pytest

from penchant.config import load_settings
from penchant.errors import ConfigError
from penchant.runtime.training import tracking
from penchant.runtime.training.config import FitSettings, TrackingSettings
from penchant.runtime.training.run_folder import RunFolder
from penchant.runtime.training.tracking import Tracker, check_tracking, numbers, track_run, tune_callbacks

RECORDS = [
    {"done": 1, "total": 4, "note": "starting"},
    {"done": 2, "total": 4, "candidate": "id+text", "step": 10, "loss": 0.5, "valid_accuracy": 0.6},
    {"done": 4, "total": 4, "candidate": "id+text", "step": 20, "loss": 0.4, "valid_accuracy": 0.7},
]


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run", "data", load_settings(FitSettings))


def track(settings, run):
    """A stage that is interrupted after its second record and resumed, and the evaluation."""
    with track_run(settings, run, "graph") as tracker:
        for record in RECORDS[:2]:
            tracker.record(record)
    with track_run(settings, run, "graph") as tracker:
        tracker.record(RECORDS[2])
    with track_run(settings, run, "evaluation") as tracker:
        tracker.summary({"personalised": {"seen": {"all": {"value": 0.9}}}})


def test_tensorboard_gets_curves_and_figures(run):
    from tensorboard.backend.event_processing import event_accumulator

    track(TrackingSettings(tensorboard=True), run)

    def points(stage, tag):
        events = event_accumulator.EventAccumulator(str(run.path / "tensorboard" / stage))
        events.Reload()
        return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]

    assert points("graph", "graph/id-text/loss") == [(10, 0.5), (20, 0.4)]
    assert points("graph", "graph/id-text/valid_accuracy") == [(10, 0.6), (20, 0.7)]
    assert points("evaluation", "evaluation/personalised/seen/all/value") == [(0, 0.9)]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_gets_one_run_however_often_it_is_resumed(run, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    track(TrackingSettings(mlflow=uri), run)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("penchant")
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "graph/id-text/loss")
    assert [(point.step, point.value) for point in history] == [(10, 0.5), (20, 0.4)]
    assert found.data.metrics["evaluation/personalised/seen/all/value"] == 0.9
    assert found.data.params["reward.steps"] == str(run.settings.reward.steps)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_is_written_offline_without_a_key(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    track(TrackingSettings(wandb="tests"), run)
    written = list((run.path / "wandb").glob(f"offline-run-*-{run.id}/run-{run.id}.wandb"))
    assert written, "each stage goes on with the run of this id (W&B names offline folders by the second)"
    assert any(b"graph/id-text/loss" in path.read_bytes() for path in written)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_package_that_is_missing_is_named_before_any_work(name, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"penchant\[tracking-{name}\]"):
        check_tracking(TrackingSettings(**{name: True if name == "tensorboard" else "there"}))
    check_tracking(TrackingSettings())


def test_secrets_do_not_get_into_a_runs_settings(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda package: True)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as raised:
        check_tracking(TrackingSettings(mlflow="http://ana:hush@host:5000"))
    assert "hush" not in str(raised.value)


def test_a_server_that_does_not_answer_is_told_at_once(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda package: True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConfigError, match="Nobody answers"):
        check_tracking(TrackingSettings(mlflow=uri))


def test_a_tracker_that_fails_costs_its_curves_not_the_run(caplog):
    class Broken:
        def write(self, curve, step, values):
            raise RuntimeError("with a secret in it")

        def close(self):
            raise RuntimeError

    class Whole:
        def __init__(self):
            self.points = []

        def write(self, curve, step, values):
            self.points.append((curve, step, dict(values)))

        def close(self):
            self.points.append("closed")

    whole = Whole()
    tracker = Tracker("reward", {"broken": Broken(), "whole": whole})
    with caplog.at_level(logging.WARNING):
        tracker.record({"step": 1, "loss": {"uniform": 0.5, "note": "words"}})
        tracker.close()
    assert whole.points == [("reward", 1, {"loss/uniform": 0.5}), "closed"]
    assert [record.getMessage() for record in caplog.records] == ["tracking.broken: RuntimeError; the run goes on without it"]


def test_names_are_such_as_every_tracker_takes():
    assert numbers({"id+text": {"a b": 1, "yes": True}, "c": None}) == {"id-text/a-b": 1.0}


def test_who_watches_does_not_make_it_another_run(run):
    assert RunFolder(run.path, "data", load_settings(FitSettings, overrides=["tracking.tensorboard=true"])).id == run.id


def test_sweeps_use_rays_own_callbacks():
    assert tune_callbacks(TrackingSettings(), name="sweep") == []
    (callback,) = tune_callbacks(TrackingSettings(tensorboard=True), name="sweep")
    assert type(callback).__name__ == "TBXLoggerCallback"
