"""Learning curves and results for TensorBoard, MLflow and Weights & Biases, each where it is asked for.

The driver feeds them from the run's own progress records, which are written whatever is asked for here. So workers need neither
the packages nor the secrets, and a tracker that fails costs its curves, not the run. Ray Train has no loggers of its own (its
callbacks see reports, which here carry checkpoints); Ray Tune has, and sweeps use those (`tuning/trackers.py`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from penchant.errors import ConfigError
from penchant.runtime.training.config import TrackingSettings
from penchant.runtime.training.progress import Record
from penchant.runtime.training.run_folder import RunFolder

log = logging.getLogger(__name__)
TrackerT = TypeVar("TrackerT")

_EXPERIMENT = "penchant"
_BOOKKEEPING = {"done", "total", "note", "candidate", "step"}
_PORTS = {"http": 80, "https": 443}


class Sink(Protocol):
    """Something that keeps curves."""

    def write(self, curve: str, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each of a curve's values."""

    def close(self) -> None:
        """Sends what is left."""


class Tracker:
    """One stage's records, sent to every sink. One that fails is left out from then on.

    Args:
        stage: First part of every name.
        sinks: By name.
    """

    def __init__(self, stage: str, sinks: dict[str, Sink]) -> None:
        self.stage, self.sinks = stage, sinks

    def record(self, record: Record) -> None:
        """Adds a progress record that has a step."""
        if "step" in record:
            curve = "/".join([self.stage, *([plain_name(record["candidate"])] if "candidate" in record else [])])
            values = numbers({name: value for name, value in record.items() if name not in _BOOKKEEPING})
            tell_each(self.sinks, lambda sink: sink.write(curve, record["step"], values))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Adds final figures, which may be nested."""
        tell_each(self.sinks, lambda sink: sink.write(self.stage, 0, numbers(values)))

    def close(self) -> None:
        """Sends what is left."""
        tell_each(self.sinks, lambda sink: sink.close())


def tell_each(trackers: dict[str, TrackerT], work: Callable[[TrackerT], None], *, tracked: str = "the run") -> None:
    """Does the work with each tracker. One that fails is taken out of `trackers`, with a warning: what is tracked goes on."""
    for name, tracker in list(trackers.items()):
        try:
            work(tracker)
        except Exception as error:  # whatever a package raises
            del trackers[name]
            log.warning("tracking.%s: %s; %s goes on without it", name, type(error).__name__, tracked)


def check_tracking(settings: TrackingSettings) -> None:
    """Fails early if what is to track a run is not there.

    Raises:
        ConfigError: A package is not installed, a URI holds a password, or a server does not answer.
    """
    for name, package in (("tensorboard", "tensorboardX"), ("mlflow", "mlflow"), ("wandb", "wandb")):
        if getattr(settings, name) and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"The package {package!r} is not installed.",
                where=f"tracking.{name}",
                fix=f"Install it with: pip install 'penchant[tracking-{name}]'",
            )
    if settings.mlflow is None:
        return
    server = urlsplit(settings.mlflow)
    if server.password:
        raise ConfigError(
            "The URI holds a password, and a run writes its settings down.",
            where="tracking.mlflow",
            fix="Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead.",
        )
    if server.scheme in _PORTS and server.hostname:
        # MLflow itself tries for minutes before it says that nobody is there.
        try:
            socket.create_connection((server.hostname, server.port or _PORTS[server.scheme]), timeout=5).close()
        except OSError as error:
            raise ConfigError(
                f"Nobody answers there ({error}).", where=f"tracking.mlflow={settings.mlflow}", fix="Check the address."
            ) from None


@contextlib.contextmanager
def track_run(settings: TrackingSettings, run: RunFolder, stage: str) -> Iterator[Tracker]:
    """Yields what takes the records of one stage. A run that is resumed goes on in the same place."""
    makers: dict[str, Callable[[], Sink]] = {}
    if settings.tensorboard:
        makers["tensorboard"] = lambda: _TensorBoard(run.path / "tensorboard" / stage)
    if settings.mlflow is not None:
        uri = settings.mlflow
        makers["mlflow"] = lambda: _Mlflow(uri, run)
    if settings.wandb is not None:
        project = settings.wandb
        makers["wandb"] = lambda: _Wandb(project, run)
    tracker = Tracker(stage, {})
    for name, make in makers.items():
        try:
            tracker.sinks[name] = make()
        except Exception as error:
            log.warning("tracking.%s: %s; the run goes on without it", name, type(error).__name__)
    try:
        yield tracker
    finally:
        tracker.close()


def tune_callbacks(settings: TrackingSettings, *, name: str) -> list[Any]:
    """Ray Tune's own callbacks for a sweep of this name.

    Raises:
        ConfigError: As `check_tracking`.
    """
    check_tracking(settings)
    callbacks: list[Any] = []
    if settings.tensorboard:
        from ray.tune.logger import TBXLoggerCallback

        callbacks.append(TBXLoggerCallback())
    if settings.mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(MLflowLoggerCallback(tracking_uri=settings.mlflow, experiment_name=name))
    if settings.wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        callbacks.append(WandbLoggerCallback(project=settings.wandb, group=name))
    return callbacks


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in nested mappings, under names joined by slashes that every tracker takes."""
    found: dict[str, float] = {}
    for name, value in values.items():
        key = prefix + plain_name(name)
        if isinstance(value, Mapping):
            found |= numbers(value, f"{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = float(value)
    return found


def plain_name(name: object) -> str:
    """A part of a name with nothing in it that some tracker refuses or changes."""
    return re.sub(r"[^\w.-]", "-", str(name))


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        # Without a suffix, a file that is opened in the same second takes the place of the one before.
        self._writer = SummaryWriter(str(folder), filename_suffix=f".{time.time_ns()}")

    def write(self, curve: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{curve}/{name}", value, global_step=step)

    def close(self) -> None:
        self._writer.close()


class _Mlflow:
    """A run of an MLflow experiment, found again by its tag."""

    def __init__(self, uri: str, run: RunFolder) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.penchant_run = '{run.id}'", max_results=1)
        if found:
            self._run: str = found[0].info.run_id
            return
        made = self._client.create_run(experiment, tags={"penchant_run": run.id, "mlflow.runName": run.path.name})
        self._run = made.info.run_id
        for key, value in _settings(run).items():
            self._client.log_param(self._run, key, value)

    def write(self, curve: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, f"{curve}/{name}", value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _Wandb:
    def __init__(self, project: str, run: RunFolder) -> None:
        import wandb

        self._run = wandb.init(
            project=project, id=run.id, name=run.path.name, resume="allow", config=_settings(run), dir=str(run.path)
        )
        self._curves: set[str] = set()

    def write(self, curve: str, step: int, values: Mapping[str, float]) -> None:
        if curve not in self._curves:
            # Each curve has steps of its own; W&B's single counter may not go back.
            self._run.define_metric(f"{curve}/*", step_metric=f"{curve}/step")
            self._curves.add(curve)
        self._run.log({f"{curve}/step": step} | {f"{curve}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        self._run.finish()


def _settings(run: RunFolder) -> dict[str, Any]:
    """The run's settings under dotted names, and its data set. They hold no secrets."""
    flat: dict[str, Any] = {"dataset": run.dataset}

    def visit(values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                visit(value, f"{prefix}{plain_name(name)}.")
            else:
                flat[prefix + plain_name(name)] = value

    visit(run.settings.model_dump(mode="json", exclude={"workers", "tracking"}), "")
    return flat
