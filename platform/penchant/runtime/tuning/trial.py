"""A trial: the stages of a fit up to the last, which says after each look at the validation comparisons how it stands.

The loops are those of a fit, under Ray Train. One worker trains in the trial's own process (Ray Train's local mode), so that a
trial costs no group of workers; several make a group, and their looks come through `TuneReportCallback`. A trial trains the
personalised model alone. What several trials begin with alike (a graph, the heads on it) is made once, by the first of them.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray import PlacementGroupID, tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.result import RESULT_DUPLICATE
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from penchant import __version__
from penchant.errors import StorageError
from penchant.runtime.training.config import FitSettings
from penchant.runtime.training.expert_stage import expert_loop
from penchant.runtime.training.graph_stage import graph_loop, keep_best
from penchant.runtime.training.progress import ProgressLog
from penchant.runtime.training.reward_stage import reward_loop
from penchant.runtime.training.shared import SharedResults
from penchant.runtime.training.workers import run_stage
from penchant.runtime.tuning.candidates import stage_of, trial_settings
from penchant.runtime.tuning.looks import MODEL, Heads, Looks
from penchant.runtime.tuning.space import Space, Stage, Value
from penchant.storage import Location, join, remove

_STOP_SECONDS = 10
_GROUP = "placement_group"
"""Where a look names the resources that the trial's workers hold."""


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep have in common."""

    out: Path
    """Where graphs and heads are shared: the sweep's folder, or its mirror, which each node has of its own."""
    checkpoints: Location
    """Where Ray Train keeps what it keeps of a group of workers: of each trial in a folder of its own, as long as it runs."""
    prepared: Location
    """The prepared data, which holds no test comparison and no unseen user."""
    dataset: str
    """Fingerprint of the data set."""
    space: Space
    base: FitSettings
    worker: Mapping[str, float]
    """What each worker of a group is given: cores (`CPU`) and GPUs (`GPU`)."""


def run_group_trial(config: dict[str, Any], plan: TrialPlan) -> None:
    """What Ray Tune runs where a trial has several workers: `config` has its values by dotted key."""
    _Trial(plan, config, _report_of_group, [TuneReportCallback()]).run()


def _report_of_group(metrics: dict[str, Any]) -> None:
    group = get_current_placement_group()
    ray.train.report(metrics | ({} if group is None else {_GROUP: group.id.hex()}))


class GroupsRelease(tune.Callback):
    """Gives back what a trial's group of workers holds when the trial ends.

    A trial that ASHA stops is ended with its process, and in Ray 2.60 the workers' placement group then outlives it where Ray's
    own cleaner finds no dashboard, or another cluster on the machine: the next trial would wait for its resources for ever.
    """

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial ended without an error."""
        self._release(trial)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed, and is tried again with another group."""
        self._release(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed, and is given up."""
        self._release(trial)

    def _release(self, trial: Trial) -> None:
        group = (trial.last_result or {}).get(_GROUP)
        if group is not None:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))


class TrialAlone(tune.Trainable):
    """What Ray Tune runs where a trial has one worker: a thread of this process trains, and waits at each look.

    It is no function of Ray Tune's, for inside one the loops' calls of Ray Train are refused.
    """

    def setup(self, config: dict[str, Any], plan: TrialPlan) -> None:  # type: ignore[override]  # by `with_parameters`
        """Takes a trial's values by dotted key."""
        self.plan = plan
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        self.talk = Talk(lambda report: _Trial(self.plan, config, report).run())

    def step(self) -> dict[str, Any]:
        """Trains up to the next look."""
        look = self.talk.next()
        return {RESULT_DUPLICATE: True} if look is None else look

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next trial, unless the one before cannot be stopped soon."""
        if self.talk.stop(timeout=_STOP_SECONDS):
            self._begin(new_config)
            return True
        return False

    def cleanup(self) -> None:
        """Stops at the next look."""
        self.talk.stop(timeout=0)


class Talk:
    """Runs a function on a thread of its own, one report at a time.

    Args:
        work: It is given the function to report with, which returns when the next report is asked for.
    """

    def __init__(self, work: Callable[[Callable[[dict[str, Any]], None]], None]) -> None:
        self._said: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue()
        self._go = threading.Semaphore(0)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)

    def _run(self, work: Callable[[Callable[[dict[str, Any]], None]], None]) -> None:
        try:
            work(self._report)
        except Exception as error:
            self._said.put(error)
        else:
            self._said.put(None)

    def _report(self, metrics: dict[str, Any]) -> None:
        self._said.put(metrics)
        self._go.acquire()
        if self._stopped:
            raise SystemExit  # ends this thread, with every `finally` on the way

    def next(self) -> dict[str, Any] | None:
        """The next report, or None where the work is done. Raises what the work raised."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        said = self._said.get()
        if isinstance(said, BaseException):
            raise said
        return said

    def stop(self, *, timeout: float) -> bool:
        """Ends the work at its next report; whether it has ended in time, in seconds."""
        self._stopped = True
        self._go.release()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()


class _UnkeptLog(ProgressLog):
    """What a stage says beside its looks, which nobody reads: a file of a group that is being ended would outlive the sweep."""

    def write(self, **values: Any) -> None:
        pass


class _Trial:
    def __init__(
        self,
        plan: TrialPlan,
        values: Mapping[str, Value],
        report: Callable[[dict[str, Any]], None],
        callbacks: Sequence[ray.train.UserCallback] = (),
    ) -> None:
        self.plan, self.report, self.callbacks = plan, report, callbacks
        self.settings = trial_settings(plan.space, plan.base, values)
        self.alone = not callbacks
        self.name = uuid.uuid4().hex[:8]
        self.scratch = plan.out / "scratch" / self.name
        """What the trial's model is written to. Only its looks are kept: the best is fitted again, in full."""
        self.checkpoints = join(plan.checkpoints, self.name)
        """Of the stages that a group of workers trains without looks, which nobody takes up after the trial."""
        self.started = time.monotonic()

    def run(self) -> None:
        try:
            self._run(stage_of(self.plan.space, self.plan.base))
        finally:
            remove(self.scratch)
            if not self.alone:  # a worker in this process has kept none
                with contextlib.suppress(StorageError):  # the end of the sweep deletes what is left
                    remove(self.checkpoints)

    def _run(self, stage: Stage) -> None:
        if stage == "graph":
            return self._stage("graph", graph_loop, self._graph(self.scratch / "candidates"), looks=True)
        shared = SharedResults(self.plan.out)
        graph, _ = shared.take("graphs", self._graph_inputs(), self._make_graph)
        if stage == "reward":
            return self._stage("reward", reward_loop, self._reward(graph, self.scratch / "reward"), looks=True)
        heads, _ = shared.take("heads", [graph.name, self._plain("reward")], lambda out: self._make_heads(graph, out))
        before = Heads(heads, self.settings.reward.head, self.plan.prepared)
        return self._stage(
            "experts", expert_loop, self._experts(graph, heads, self.scratch / "experts"), looks=True, heads=before
        )

    def _stage(self, stage: Stage, loop: Any, config: dict[str, Any], *, looks: bool = False, heads: Heads | None = None) -> None:
        log = _UnkeptLog(self.scratch / f"{stage}.jsonl")
        shared = {"prepared": str(self.plan.prepared), "log": log, "models": (MODEL,)}
        workers = self.settings.workers
        if looks:
            # It has no checkpoint to go on from: Ray Tune begins a trial that lost a worker again, and knows of its looks.
            workers = workers.model_copy(update={"max_failures": 0})
        run_stage(
            loop,
            config | shared,
            name=f"{self.name}-{stage}",
            storage=self.checkpoints,
            settings=workers,
            in_process=self.alone,
            on_look=Looks(self.report, shared_seconds=time.monotonic() - self.started, heads=heads) if looks else None,
            callbacks=self.callbacks if looks else (),
            resources_per_worker=None if self.alone else dict(self.plan.worker),
        )

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
