"""A sweep: prepares the data once, lets Ray Tune run the trials, and leaves the best settings, the numbers and the report::

    out/run.json          what it is a sweep of: another is refused; with what it is tracked
    out/fit/              the prepared data, as a fit has it
    out/graphs/ heads/    what trials share
    out/tune/             Ray Tune's state, from which an interrupted sweep is taken up
    out/journal.jsonl     what happened, as it happened
    out/best.yaml  sweep.json  sweep.html

The folder may be remote, as a run's: the driver works in a mirror and shares, after each trial, what another machine needs to
take the sweep up; Ray Tune writes its state to the URI directly. What trials share, every node then makes for itself.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import ray
from pyarrow.fs import FileSelector
from ray import tune
from rich.console import Console

from penchant.artifacts import fingerprint, read_json, write_json, write_text
from penchant.config import dump_settings
from penchant.data import PreferenceDataset
from penchant.errors import OutputError, TrainingError
from penchant.runtime.cluster import start_ray, wait_for_resources
from penchant.runtime.threads import run_beside
from penchant.runtime.training.config import FitSettings, TrackingSettings
from penchant.runtime.training.stages import Stages
from penchant.runtime.tuning.candidates import Check, best_settings, most_steps, stage_of, trial_settings
from penchant.runtime.tuning.journal import CLOCK, JOURNAL, Clock, Journal, JournalCallback, RecordedAsha
from penchant.runtime.tuning.report import write_sweep_report
from penchant.runtime.tuning.results import TrialRow, best_of, front, ranked, read_trials, refused, summary, why
from penchant.runtime.tuning.search import CheckedSearch
from penchant.runtime.tuning.show import show_sweep
from penchant.runtime.tuning.space import Space
from penchant.runtime.tuning.trackers import RUN, TrialTrackers
from penchant.runtime.tuning.trial import GroupsRelease, TrialAlone, TrialPlan, run_group_trial
from penchant.storage import Location, MirroredFolder, open_location, remove

_EXPERIMENT, _CHECKPOINTS = "tune", "checkpoints"
_GROWING = (JOURNAL, CLOCK, "sweep.json")


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found."""

    best: TrialRow
    rows: list[TrialRow]
    """All trials, in the order in which they were started."""
    values: dict[str, Any]
    """What `sweep.json` holds."""


class Sweep:
    """Runs a sweep of one data set in one --out folder.

    Args:
        dataset: Validated data.
        space: What is searched.
        base: What all trials have in common; the best is the base with a trial's values.
        out: The --out folder, or its URI; on a cluster without a URI, on storage that every node sees.
        console: Where progress is shown.
        trials: Trials to start; by default the space's.
        seconds: The trials' time, all together; None for no limit.
        address: A running Ray cluster to join.

    Raises:
        OutputError: `out` holds another sweep, or something else.
        StorageError: `out` is a URI that cannot be reached or written.
        PenchantError: What `Stages` raises.
    """

    def __init__(
        self,
        dataset: PreferenceDataset,
        space: Space,
        base: FitSettings,
        out: Location,
        console: Console,
        *,
        trials: int | None = None,
        seconds: float | None = None,
        address: str | None = None,
    ) -> None:
        self.dataset, self.space, self.base, self.console = dataset, space, base, console
        self.folder = MirroredFolder(out, identity=RUN, growing=_GROWING)
        self.out, self.address, self.seconds = self.folder.path, address, seconds
        self.trials = trials or space.trials
        identity = self._identity(str(out))
        # What a trial may have is checked for each; what all have, here.
        self.stages = Stages(dataset, trial_settings(space, base, {}), self.folder.location("fit"), console, address=address)
        tracking = self.stages.settings.tracking.model_dump(mode="json")
        write_json(self.out / RUN, identity | {"tracking": tracking})
        write_text(self.out / "space.yaml", dump_settings(space))
        self.folder.share(RUN, "space.yaml")
        self.journal = Journal(self.folder, shared=[CLOCK])
        self.clock = Clock(self.folder, seconds)

    def _identity(self, out: str) -> dict[str, Any]:
        """What the folder is a sweep of, if it holds no other. Who does the work and who watches may change."""
        space, base = self.space.model_dump(mode="json"), self.base.model_dump(mode="json", exclude={"workers"})
        tracked = fingerprint([space, base])  # when who watches was a part of it
        for given in (space["settings"], space["trial"]):
            given.pop("tracking", None)
        base["tracking"] = TrackingSettings().model_dump(mode="json")  # not left out: those from before are known by it
        identity = {
            "dataset": self.dataset.fingerprint,
            "sweep": fingerprint([space, base]),
            "trials": self.trials,
            "seconds": self.seconds,
        }
        path = self.out / RUN
        if path.is_file():
            found = read_json(path)
            words = {"dataset": "another data set", "sweep": "another space or settings", "trials": "another --trials"}
            if found.get("sweep") == tracked:
                found["sweep"] = identity["sweep"]
            differing = [words.get(name, "another --time") for name, value in identity.items() if found.get(name) != value]
            if differing:
                raise OutputError(
                    f"The folder holds a sweep with {' and '.join(differing)}.",
                    where=out,
                    fix="Choose another --out folder, or remove this one.",
                )
        return identity

    def run(self) -> SweepResult:
        """Runs what is left to run, and writes what was found. A sweep that is done is read, not run again.

        Raises:
            TrainingError: No trial came to a look at the validation comparisons.
        """
        if not (self.out / "sweep.json").is_file():
            self._prepare()
            with show_sweep(self.console, self.journal, self.trials):
                self._tune()
            # What is left is of trials that were ended half-way, with their process.
            remove(self.out / "scratch")
            remove(self.folder.location(_CHECKPOINTS))
        return self._write()

    def _prepare(self) -> None:
        start_ray(self.address)
        self.stages.prepare()
        if stage_of(self.space, self.base) == "experts":
            # Another number of layers has other activations below them; a trial computes what is not kept.
            self.stages.cache_activations()

    def _tune(self) -> None:
        group, gpus = self._group()
        worker: dict[str, float] = {"CPU": self.space.resources.cpus, "GPU": gpus}
        workers = {"num_workers": group, "threads": self.space.resources.cpus, "use_gpu": gpus > 0}
        base = self.stages.settings  # the base model's folder is absolute there
        base = self.base.model_copy(update={"backbone": base.backbone, "workers": self.base.workers.model_copy(update=workers)})
        plan = TrialPlan(
            out=self.out,
            checkpoints=self.folder.location(_CHECKPOINTS),
            prepared=self.stages.run.location("prepared"),
            dataset=self.dataset.fingerprint,
            space=self.space,
            base=base,
            worker=worker,
        )
        # A trial in its own process uses what it is given; one with a group waits for its workers, who are given theirs. Ray Tune
        # refuses a trial that asks for nothing: that one asks for a byte.
        own = worker if group == 1 else {"memory": 1.0}
        run: Any = TrialAlone if group == 1 else run_group_trial
        trainable = tune.with_resources(tune.with_parameters(run, plan=plan), own)
        # The state that a crash leaves is at most so old, in seconds; the journal replaces Tune's own logs.
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the reasons of failures are shown at the end
        path = self.folder.location(_EXPERIMENT)
        if _has_state(path):
            tuner = tune.Tuner.restore(path, trainable=trainable)
        else:
            tuner = tune.Tuner(trainable, tune_config=self._tune_config(group, gpus), run_config=self._run_config())
        # What an interruption leaves behind is what a crash does, and is taken up in the same way.
        run_beside(tuner.fit)

    def _group(self) -> tuple[int, float]:
        """Workers of a trial, and GPUs of each.

        Raises:
            TrainingError: One trial wants more than there is after `workers.wait_seconds`, or its workers would share a GPU.
        """
        group, gpus = self.base.workers.num_workers or 1, self.space.resources.gpus
        if group > 1 and gpus is not None and 0 < gpus < 1:
            # They talk through NCCL, which wants a device for each.
            raise TrainingError(
                "The workers of one trial cannot share a GPU.",
                where="resources.gpus of the space",
                fix="Give each worker a whole one, or a trial one worker.",
            )
        self._wait()
        there = ray.cluster_resources()
        if gpus is None:
            gpus = 1.0 if there.get("GPU", 0) and self.base.workers.use_gpu is not False else 0.0
        for name, each in (("CPU", float(self.space.resources.cpus)), ("GPU", gpus)):
            if each * group > there.get(name, 0):
                raise TrainingError(
                    f"A trial of {group} x {each:g} {name} does not fit the cluster's {there.get(name, 0):g}.",
                    where="resources of the space",
                    fix="Ask for less.",
                )
        return group, gpus

    def _wait(self) -> None:
        """Lets an autoscaled cluster bring what one trial wants; GPUs first, whose machines have cores too."""
        resources, workers = self.space.resources, self.base.workers
        gpus = float(bool(workers.use_gpu)) if resources.gpus is None else resources.gpus
        group = workers.num_workers or 1
        for kind, each in (("GPU", gpus), ("CPU", resources.cpus)):
            wait_for_resources(kind, math.ceil(each * group), seconds=workers.wait_seconds, console=self.console)

    def _side_by_side(self, group: int, gpus: float) -> int:
        there = ray.cluster_resources()
        fits = [there.get("CPU", 1) / (self.space.resources.cpus * group)]
        if gpus:
            fits.append(there.get("GPU", 0) / (gpus * group))
        return max(1, int(min(fits)))

    def _tune_config(self, group: int, gpus: float) -> tune.TuneConfig:
        check = Check(self.space, self.base, num_users=int(self.dataset.seen.sum()))
        asha = self.space.asha
        return tune.TuneConfig(
            num_samples=self.trials,
            max_concurrent_trials=self._side_by_side(group, gpus),
            search_alg=CheckedSearch(self.space, check, self.journal),
            scheduler=RecordedAsha(self.journal, steps=most_steps(self.space, self.base), first=asha.first, factor=asha.factor),
            # A process that has loaded everything takes the next trial; one that waits for a group cannot be stopped half-way.
            reuse_actors=group == 1,
        )

    def _run_config(self) -> tune.RunConfig:
        return tune.RunConfig(
            name=_EXPERIMENT,
            storage_path=self.folder.uri or str(self.out),
            stop=self.clock,
            callbacks=[JournalCallback(self.journal, self.clock), GroupsRelease(), TrialTrackers(self.folder)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # only its looks are kept
            failure_config=tune.FailureConfig(max_failures=self.space.max_failures),
            verbose=0,
        )

    def _write(self) -> SweepResult:
        records = self.journal.read()
        rows = read_trials(records)
        best, most = best_of(rows, self.space.choose), ranked(rows)[0]
        settings = best_settings(self.base, best.values)
        values = {
            "stage": stage_of(self.space, self.base),
            "objectives": list(self.space.objectives),
            "best": best.trial,
            "most_accurate": most.trial,
            "why": why(best, most),
            "front": [row.trial for row in front(rows, self.space.objectives)],
            "summary": summary(rows) | {"refused": refused(records), "seconds": self.clock.seconds()},
            "trials": [asdict(row) for row in rows],
        }
        said = f"# {values['why']} For `fit --config`.\n"
        write_text(self.out / "best.yaml", said + dump_settings(settings))
        write_sweep_report(self.out / "sweep.html", self.space, rows, values)
        write_json(self.out / "sweep.json", values)
        self.folder.share(*_GROWING, "best.yaml", "sweep.html")
        return SweepResult(best, ranked(rows) + [row for row in rows if not row.counts], values)


def _has_state(location: str) -> bool:
    """Whether Ray Tune can take an experiment up. Killed before anything was saved, it has nothing to be taken up from."""
    filesystem, path = open_location(location)
    found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
    return tune.Tuner.can_restore(location) and any(info.base_name.startswith("experiment_state-") for info in found)
