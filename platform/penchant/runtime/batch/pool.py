"""A pool of actors, each with a model, that works parts off under Ray Data."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
import torch
from ray._private.state import available_resources_per_node
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError
from rich.console import Console

from penchant.errors import PenchantError, TrainingError
from penchant.runtime.batch.config import BatchSettings
from penchant.runtime.cluster import driver_cores, wait_for_resources
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.onboarded import read_onboarded


@dataclass(frozen=True)
class Pool:
    """How many actors, and what each may use."""

    num_workers: int
    threads: int
    use_gpu: bool
    cores: int = 1
    """Cores that Ray counts for each: no more than were free, or an actor might wait for ever. Beside a GPU one is enough."""


@dataclass(frozen=True)
class _Machine:
    """A node with at least a core that this job's own process does not hold."""

    cores: int
    free: int
    """Of the cores, those that nothing holds now."""
    gpus: int


def choose_pool(settings: BatchSettings, console: Console) -> Pool:
    """The pool that the settings ask for, or every GPU, or every machine of this cluster with all its cores that are free.

    Where most cores of a machine are held, that is a pool of the other machines: what puts most cores to work at once.

    Raises:
        TrainingError: After `wait_seconds` there is no GPU where one is asked for, or there are fewer GPUs or cores than workers,
            or no cores but those that the job's own process holds.
    """
    _wait(settings, console)
    machines, use_gpu = _usable(settings)
    gpus = sum(machine.gpus for machine in machines)
    free = [machine.free for machine in machines]
    num_workers = settings.num_workers or (gpus if use_gpu else _most_at_work(free))
    available = gpus if use_gpu else sum(machine.cores for machine in machines)
    if num_workers > available:
        raise TrainingError(
            f"{num_workers} workers were asked for and the cluster has {available} {'GPUs' if use_gpu else 'cores'}.",
            where="batch.num_workers",
            fix="Ask for fewer.",
        )
    each, cores = _cores_each(free, num_workers), min(machine.cores for machine in machines)
    if settings.threads and settings.threads > cores:
        raise TrainingError(
            f"{settings.threads} threads were asked for and a machine has {cores} cores.",
            where="batch.threads",
            fix="Ask for fewer.",
        )
    if not any(free):
        console.print("No core is free now: the workers wait for those that other jobs hold, and take one each.")
    threads = settings.threads or each
    return Pool(num_workers, threads, use_gpu, cores=1 if use_gpu else min(threads, each))


def _wait(settings: BatchSettings, console: Console) -> None:
    wanted = settings.num_workers or 1
    if settings.use_gpu:
        wait_for_resources("GPU", wanted, seconds=settings.wait_seconds, console=console)
    else:  # the cores of this process are no worker's
        wait_for_resources("CPU", wanted + math.ceil(driver_cores()), seconds=settings.wait_seconds, console=console)


def _usable(settings: BatchSettings) -> tuple[list[_Machine], bool]:
    """The machines that workers may run on, one at least, and whether they use GPUs."""
    machines = _machines()
    with_gpu = [machine for machine in machines if machine.gpus]
    use_gpu = bool(with_gpu) if settings.use_gpu is None else settings.use_gpu
    if use_gpu and not with_gpu:
        raise TrainingError("The cluster has no GPU.", where="batch.use_gpu", fix="Leave it out, or set it to false.")
    if not machines:
        own = driver_cores()
        held, less = (f" but the {own:g} of the job's own process", "Give --driver-cpus less, or add") if own else ("", "Add")
        raise TrainingError(
            f"The cluster has no core to work on{held}.",
            where="the cluster",
            fix=f"{less} a machine to it; an autoscaled cluster brings one within batch.wait_seconds.",
        )
    return (with_gpu if use_gpu else machines), use_gpu


def _machines() -> list[_Machine]:
    here, own, free = ray.get_runtime_context().get_node_id(), driver_cores(), available_resources_per_node()
    machines = []
    for node in ray.nodes():
        has = node["Resources"]
        left = has.get("CPU", 0) - (own if node["NodeID"] == here else 0)
        if node["Alive"] and left >= 1:
            now = free.get(node["NodeID"], has).get("CPU", 0)  # a node that has just come may not be counted yet
            machines.append(_Machine(int(has["CPU"]), int(min(now, left)), int(has.get("GPU", 0))))
    return machines


def _cores_each(free: Sequence[int], num_workers: int) -> int:
    """The most cores that each of so many workers can have at once of those `free` on each machine; 1 where that is too many."""
    return next((cores for cores in range(max(free), 1, -1) if sum(own // cores for own in free) >= num_workers), 1)


def _most_at_work(free: Sequence[int]) -> int:
    """How many workers, one for each machine at most, put most of the free cores to work; where it is the same, the more."""
    fitting = {cores: min(len(free), sum(own // cores for own in free)) for cores in range(1, max(free) + 1)}
    return max(((cores * number, number) for cores, number in fitting.items()), default=(0, len(free)))[1]


def load_model(bundle: str, onboarded: str | None, settings: BatchSettings, pool: Pool) -> PersonalisedRewardModel:
    """A worker's model, in the worker's own process."""
    torch.set_num_threads(pool.threads)
    device = "cuda" if pool.use_gpu else "cpu"
    model = PersonalisedRewardModel.load(bundle, remembered_texts=settings.remembered_texts, device=device)
    if onboarded is not None:
        model.remember(read_onboarded(onboarded, bundle=model.manifest.name))
    model.score("", "Warm", ["up."])  # the base is loaded, and the experts are built, on first use
    return model


def work_off(parts: Sequence[dict[str, Any]], worker: type, arguments: dict[str, Any], pool: Pool) -> Iterator[dict[str, Any]]:
    """Gives each part to a worker that is free; yields what the workers return, in the order in which they end.

    A worker that dies is replaced, and its part is done again.

    Args:
        parts: Plain values, one dictionary a part.
        worker: Its `__call__` takes a part and returns plain values.
        arguments: Of its constructor.

    Raises:
        PenchantError: What a worker raised, or a `TrainingError` for a failure that is not the user's.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False  # ours says more, and says it in logs too
    context.execution_no_progress_timeout_s = -1  # a part may take long, and so may a machine to come
    context.raise_original_map_exception = True  # so that a user's mistake arrives as what it is
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors reach us as exceptions
    dataset = ray.data.from_items(list(parts), override_num_blocks=len(parts)).map_batches(
        _PartByPart,
        fn_constructor_kwargs={"worker": worker, "arguments": arguments},
        batch_size=None,
        compute=ActorPoolStrategy(size=min(pool.num_workers, len(parts))),
        num_cpus=pool.cores,
        num_gpus=1 if pool.use_gpu else 0,
    )
    try:
        yield from dataset.iter_rows()
    except RayError as error:
        raise _cause(error) from error


class _PartByPart:
    """What Ray Data's actors hold: a worker that is given the parts of a block one by one."""

    def __init__(self, worker: type, arguments: dict[str, Any]) -> None:
        self.worker = worker(**arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        names = list(batch)
        results = [self.worker(dict(zip(names, values, strict=True))) for values in zip(*batch.values(), strict=True)]
        return {name: [result[name] for result in results] for name in results[0]}


def _cause(error: BaseException) -> PenchantError:
    """The user's mistake behind Ray's wrapping, if there is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PenchantError) and not isinstance(cause, RayError):  # Ray makes errors that are both
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = str(error).strip().splitlines()
    return TrainingError(
        f"A worker failed: {lines[-1] if lines else type(error).__name__}",
        where="batch",
        fix="Run it again: what is done stays done.",
    )
