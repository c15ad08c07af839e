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
from filelock import FileLock
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from penchant import __version__
from penchant.artifacts import fingerprint, write_json
from penchant.runtime.training.config import FitSettings
from penchant.runtime.training.expert_stage import expert_loop
from penchant.runtime.training.graph_stage import graph_loop, keep_best
from penchant.runtime.training.reward_stage import reward_loop
from penchant.runtime.training.workers import run_stage
from penchant.runtime.tuning.candidates import stage_of, trial_settings
from penchant.runtime.tuning.looks import MODEL, Heads, Looks
from penchant.runtime.tuning.space import Space, Stage

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
        before = Heads(heads, self.settings.reward.head, self.plan.prepared)
        return self._stage(
            "experts", expert_loop, self._experts(graph, heads, self.scratch / "experts"), looks=True, heads=before
        )

    def _stage(self, stage: Stage, loop: Any, config: dict[str, Any], *, looks: bool = False, heads: Heads | None = None) -> None:
        log = self.scratch / f"{stage}.jsonl"
        shared = {"prepared": str(self.plan.prepared), "log": str(log), "models": (MODEL,)}
        report = tune.report if self.alone else ray.train.report
        run_stage(
            loop,
            config | shared,
            name=f"{self.name}-{stage}",
            storage=self.plan.out / "checkpoints",
            settings=self.settings.workers,
            in_process=self.alone,
            on_look=Looks(report, shared_seconds=time.monotonic() - self.started, heads=heads) if looks else None,
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
