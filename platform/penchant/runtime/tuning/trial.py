"""A trial: the stages of a fit up to the last, which says after each look at the validation comparisons how it stands.

The loops are those of a fit, under Ray Train. One worker trains in the trial's own process (Ray Train's local mode), so that a
trial costs no group of workers; several make a group, and their looks come through `TuneReportCallback`. A trial trains the
personalised model alone. What several trials begin with alike (a graph, the heads on it) is made once, by the first of them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from filelock import FileLock
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from penchant import __version__
from penchant.artifacts import fingerprint, write_json
from penchant.graph.training import GraphTrainer
from penchant.reward.expert_training import ExpertTrainer
from penchant.reward.training import RewardTrainer
from penchant.runtime.training.config import FitSettings
from penchant.runtime.training.expert_stage import expert_loop
from penchant.runtime.training.graph_stage import graph_loop, keep_best
from penchant.runtime.training.reward_stage import reward_loop
from penchant.runtime.training.workers import run_stage
from penchant.runtime.tuning.candidates import stage_of, trial_settings
from penchant.runtime.tuning.space import Space, Stage

_MODEL = "personalised"
_MADE = "made.json"


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep have in common."""

    out: Path
    """The sweep's folder, on storage that every node sees."""
    prepared: Path
    """The prepared data, which holds no test comparison and no unseen user."""
    dataset: str
    """Fingerprint of the data set."""
    space: Space
    base: FitSettings


def run_trial(config: dict[str, Any], plan: TrialPlan) -> None:
    """What Ray Tune runs: `config` has the trial's values by dotted key."""
    _Trial(plan, trial_settings(plan.space, plan.base, config), tune.get_context().get_trial_id()).run()


class _Trial:
    def __init__(self, plan: TrialPlan, settings: FitSettings, name: str) -> None:
        self.plan, self.settings, self.name = plan, settings, name
        self.alone = (settings.workers.num_workers or 1) == 1
        self.scratch = plan.out / "scratch" / name
        """What the trial's model and curves are written to. Only its looks are kept: the best is fitted again, in full."""
        self.started = time.monotonic()

    def run(self) -> None:
        try:
            self._run(stage_of(self.plan.space, self.plan.base))
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _run(self, stage: Stage) -> None:
        if stage == "graph":
            return self._stage("graph", graph_loop, self._graph(self.scratch / "candidates"), looks=True)
        graph = self._shared("graphs", self._graph_inputs(), self._make_graph)
        if stage == "reward":
            return self._stage("reward", reward_loop, self._reward(graph, self.scratch / "reward"), looks=True)
        heads = self._shared("heads", [graph.name, self._plain("reward")], lambda out: self._make_heads(graph, out))
        return self._stage("experts", expert_loop, self._experts(graph, heads, self.scratch / "experts"), looks=True)

    def _stage(self, stage: Stage, loop: Any, config: dict[str, Any], *, looks: bool = False) -> None:
        log = self.scratch / f"{stage}.jsonl"
        shared = {"prepared": str(self.plan.prepared), "log": str(log), "models": (_MODEL,)}
        report = tune.report if self.alone else ray.train.report
        run_stage(
            loop,
            config | shared,
            name=f"{self.name}-{stage}",
            storage=self.plan.out / "checkpoints",
            settings=self.settings.workers,
            in_process=self.alone,
            on_look=Looks(report, shared_seconds=time.monotonic() - self.started) if looks else None,
            callbacks=[TuneReportCallback()] if looks and not self.alone else (),
        )

    def _shared(self, kind: str, inputs: Any, make: Callable[[Path], None]) -> Path:
        """The folder of what trials with the same inputs share; the first to come makes it, and the others wait."""
        folder = self.plan.out / kind / fingerprint(inputs)[:16]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # let go by the system where its holder dies
            if not (folder / _MADE).is_file():
                make(folder)
                write_json(folder / _MADE, {"inputs": inputs, "trial": self.name})
        return folder

    def _make_graph(self, out: Path) -> None:
        candidates = self.scratch / "shared-candidates"
        self._stage("graph", graph_loop, self._graph(candidates))
        keep_best(candidates, self.settings.graph, out)

    def _make_heads(self, graph: Path, out: Path) -> None:
        self._stage("reward", reward_loop, self._reward(graph, out))

    def _graph_inputs(self) -> list[Any]:
        return [__version__, self.plan.dataset, self._plain("backbone"), self._plain("graph")]

    def _plain(self, group: str) -> Any:
        return getattr(self.settings, group).model_dump(mode="json")

    def _graph(self, out: Path) -> dict[str, Any]:
        return {"graph": self._plain("graph"), "out": str(out)}

    def _reward(self, graph: Path, out: Path) -> dict[str, Any]:
        return {"reward": self._plain("reward"), "graph": str(graph), "graph_seed": self.settings.graph.seed, "out": str(out)}

    def _experts(self, graph: Path, heads: Path, out: Path) -> dict[str, Any]:
        return {
            "experts": self._plain("experts"),
            "backbone": self._plain("backbone"),
            "head": self.settings.reward.head.model_dump(mode="json"),
            "reward": str(heads),
            "graph": str(graph),
            "graph_seed": self.settings.graph.seed,
            "out": str(out),
        }


class Looks:
    """What a stage's loop calls with each progress; reports those that looked at the validation comparisons.

    Args:
        report: Ray Tune's, or (in a group of workers) Ray Train's.
        shared_seconds: Spent before the stage: on what trials share, or waiting for it.
    """

    def __init__(self, report: Callable[[dict[str, Any]], None], *, shared_seconds: float) -> None:
        self.report, self.shared_seconds = report, shared_seconds
        self.best = -1.0
        self.first: tuple[float, int] | None = None
        self.last: tuple[float, int] | None = None
        self.step_seconds: list[float] = []

    def __call__(self, trainer: Any, progress: Any) -> None:
        """Reports `accuracy`, the best on validation so far; `valid_accuracy`, this look's; and what it took."""
        now = time.monotonic()
        accuracy = progress.valid_accuracy
        if isinstance(accuracy, dict):
            accuracy = accuracy.get(_MODEL)
        if self.last is not None and (accuracy is None or not isinstance(trainer, ExpertTrainer)):
            # An expert's look is no part of its step; elsewhere looks are cheap, and come with every progress.
            self.step_seconds.append((now - self.last[0]) / max(1, progress.step - self.last[1]))
        self.first = self.first or (now, progress.step)
        if accuracy is not None:
            self.best = max(self.best, accuracy)
            self.report(
                {
                    "step": progress.step,
                    "accuracy": self.best,
                    "valid_accuracy": accuracy,
                    "parameters": count_parameters(trainer),
                    "step_seconds": self._seconds_a_step(),
                    "training_seconds": round(now - self.first[0] + self.first[1] * self._seconds_a_step(), 2),
                    "shared_seconds": round(self.shared_seconds, 2),
                }
            )
        self.last = (time.monotonic(), progress.step)

    def _seconds_a_step(self) -> float:
        return sum(self.step_seconds) / len(self.step_seconds) if self.step_seconds else 0.0


def count_parameters(trainer: GraphTrainer | RewardTrainer | ExpertTrainer) -> int:
    """Numbers that the personalised model trains, over all workers."""
    if isinstance(trainer, GraphTrainer):
        replicated = sum(parameter.numel() for parameter in trainer.encoder.replicated_parameters())
        own = sum(parameter.numel() for parameter in trainer.encoder.parameters()) - replicated
        device = next(trainer.encoder.parameters()).device
        return replicated + int(trainer.collective.sum(torch.tensor(own, dtype=torch.float64, device=device)))
    if isinstance(trainer, RewardTrainer):
        return sum(parameter.numel() for parameter in trainer.heads[_MODEL].parameters())
    return sum(parameter.numel() for parameter in trainer.models[_MODEL].trainable().values())
