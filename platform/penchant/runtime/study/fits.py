"""The fits of a study: one at a time, with all workers, or several side by side, each on a core or a GPU of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from penchant.artifacts import write_json
from penchant.data import PreferenceDataset
from penchant.errors import PenchantError, TrainingError
from penchant.runtime.training.config import FitSettings
from penchant.runtime.training.evaluation_stage import evaluate
from penchant.runtime.training.shared import SharedResults
from penchant.runtime.training.stages import Stages

_KEPT = {"metrics.json", "judgements.parquet", "config.yaml", "run.json", "row.json"}
"""What of a finished fit is kept: the rest can be made again, and a study has hundreds of fits."""


@dataclass(frozen=True)
class Fit:
    """A fit that is to be made."""

    title: str
    folder: Path
    settings: FitSettings
    shared: SharedResults
    """What fits of the same data and settings have in common."""
    identity: dict[str, Any]
    """What it is made from: row.json, which is written last."""


def fit(work: Fit, dataset: PreferenceDataset, console: Console, *, keep: bool, in_process: bool = False) -> str:
    """Fits and judges; returns in words how well it does. With `keep`, what it leaves besides its results stays.

    Raises:
        PenchantError: It could not be done.
    """
    stages = Stages(dataset, work.settings, work.folder, console, in_process=in_process, shared=work.shared)
    stages.fit()
    metrics = evaluate(stages)
    if not keep:
        _leave_results(work.folder)
    write_json(work.folder / "row.json", work.identity | {"seconds": metrics["run"]["seconds"]})
    cells = metrics["accuracy"]["personalised"]
    right = ", ".join(f"{cohort} {100 * kinds['all']['value']:.1f}%" for cohort, kinds in cells.items())
    return f"{right}, {metrics['run']['seconds']:.0f} s"


def places() -> int:
    """How many fits have room side by side in the cluster that was joined: one a GPU, or one a core where there is no GPU."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU", 0)) or int(resources.get("CPU", 1)))


def fit_side_by_side(
    works: Iterable[tuple[Fit, PreferenceDataset | PenchantError]], *, at_once: int, keep: bool
) -> Iterator[tuple[Fit, str | PenchantError]]:
    """Makes the fits on the cluster that was joined. `works` is drawn from as there is room.

    Every node has to see the folders of the fits.

    Yields:
        Each fit that has ended: with how well it does, or with what it or its data raised; a `TrainingError` where it ended
        without a word, for want of memory for instance.
    """
    resources = ray.cluster_resources()
    gpus = min(1.0, resources.get("GPU", 0) / at_once)
    threads = _threads(at_once, gpus)
    task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_fit_beside)
    shared: tuple[PreferenceDataset, Any] | None = None
    running: dict[Any, Fit] = {}
    remaining = iter(works)
    while True:
        while len(running) < at_once and (drawn := next(remaining, None)) is not None:
            work, dataset = drawn
            if isinstance(dataset, PenchantError):
                yield work, dataset
                continue
            if shared is None or shared[0] is not dataset:
                shared = dataset, ray.put(dataset)
            running[task.remote(work, shared[1], threads, keep)] = work
        if not running:
            return
        (done, *_), _ = ray.wait(list(running))
        work = running.pop(done)
        yield work, _outcome(done)


def _threads(at_once: int, gpus: float) -> int:
    """The most threads, which are cores, that each of so many fits can have: a fit is on one machine. One where there is no room
    for all of them at once."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def room(threads: int) -> int:
        places = 0
        for machine in machines:
            beside = int(machine.get("CPU", 0)) // threads
            if gpus:
                # Parts of one GPU go together, parts of several do not. A hair more, for a third and its like.
                beside = min(beside, int(machine.get("GPU", 0)) * int(1 / gpus + 1e-6))
            places += beside
        return places

    wanted = min(at_once, room(1))
    most = max((int(machine.get("CPU", 0)) for machine in machines), default=1)
    return next((threads for threads in range(most, 1, -1) if room(threads) >= wanted), 1)


def _outcome(done: Any) -> str | PenchantError:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PenchantError):
            return error.cause
        raise  # a fault of ours, with its traceback
    except ray.exceptions.RayError as error:
        words = str(error).strip().splitlines()[-1]
        return TrainingError(f"The fit was lost ({words}).", fix="With a smaller --at-once each has more room.")


def _fit_beside(work: Fit, dataset: PreferenceDataset, threads: int, keep: bool) -> str:
    alone = work.settings.workers.model_copy(update={"num_workers": 1, "min_workers": None, "threads": threads})
    work = replace(work, settings=work.settings.model_copy(update={"workers": alone}))
    return fit(work, dataset, Console(quiet=True), keep=keep, in_process=True)


def _leave_results(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in _KEPT:
            path.unlink()
