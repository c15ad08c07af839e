"""A sweep's trials for TensorBoard, MLflow and Weights & Biases, by Ray Tune's own callbacks: a run for each trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from penchant.artifacts import read_json
from penchant.runtime.training.config import TrackingSettings
from penchant.runtime.training.tracking import numbers, plain_name, tell_each, tune_callbacks
from penchant.runtime.tuning.journal import LOOK
from penchant.storage import MirroredFolder

RUN = "run.json"
"""Of a sweep's folder: what it is a sweep of, and with what it is tracked."""


class TrialTrackers(tune.Callback):
    """Tells of the trials to what the sweep is tracked with. A tracker that fails is left out from then on, as a fit's.

    Args:
        folder: The sweep's. `run.json` in it says what to track with now: Ray Tune takes a sweep up with the callbacks that it
            began with.
    """

    def __init__(self, folder: MirroredFolder) -> None:
        self.folder = folder
        self._callbacks: dict[str, Any] = {}
        self._shown: dict[str, _Shown] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open."""
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With nothing open yet."""
        vars(self).update(state, _callbacks={}, _shown={})

    def setup(self, stop: Any = None, num_samples: int | None = None, total_num_samples: int | None = None, **info: Any) -> None:
        """Opens the trackers."""
        settings = TrackingSettings.model_validate(read_json(self.folder.path / RUN)["tracking"])
        name = (self.folder.uri or str(self.folder.path)).rstrip("/").rpartition("/")[2]
        self._callbacks = {type(callback).__name__: callback for callback in tune_callbacks(settings, name=name)}
        self._each(lambda to: to.setup(stop=stop, num_samples=num_samples, total_num_samples=total_num_samples, **info))

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial begins, or begins again."""
        shown = self._shown.setdefault(trial.trial_id, _Shown(trial))
        self._each(lambda to: to.on_trial_start(iteration=iteration, trials=trials, trial=shown, **info))

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        """A trial looked at the validation comparisons."""
        if (shown := self._shown.get(trial.trial_id)) is not None:
            # Curves are over the trial's steps, which Ray Tune calls so.
            look = numbers({name: result[name] for name in LOOK})
            look |= {"timesteps_total": result["step"], "training_iteration": result["training_iteration"]}
            self._each(lambda to: to.on_trial_result(iteration=iteration, trials=trials, trial=shown, result=look, **info))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial ended without an error."""
        if (shown := self._shown.get(trial.trial_id)) is not None:
            self._each(lambda to: to.on_trial_complete(iteration=iteration, trials=trials, trial=shown, **info))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed, and is given up."""
        if (shown := self._shown.get(trial.trial_id)) is not None:  # it may have failed before it was started
            self._each(lambda to: to.on_trial_error(iteration=iteration, trials=trials, trial=shown, **info))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Sends what is left."""
        self._each(lambda to: to.on_experiment_end(trials=trials, **info))

    def _each(self, work: Callable[[Any], None]) -> None:
        tell_each(self._callbacks, work, tracked="the sweep")


class _Shown:
    """A trial whose settings have names that every tracker takes: `*` is none of theirs."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self.config = {plain_name(name): value for name, value in trial.config.items()}
        self.evaluated_params = self.config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def __str__(self) -> str:
        return str(self._trial)
