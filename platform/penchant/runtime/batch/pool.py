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
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from penchant.errors import PenchantError, TrainingError
from penchant.runtime.batch.config import BatchSettings
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.onboarded import read_onboarded


@dataclass(frozen=True)
class Pool:
    """How many actors, and what each may use."""

    num_workers: int
    threads: int
    use_gpu: bool


def choose_pool(settings: BatchSettings) -> Pool:
    """The pool that the settings ask for, or every GPU, or every machine of this cluster with all its cores.

    Raises:
        TrainingError: A GPU is asked for and there is none; or more workers than GPUs or cores.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    use_gpu = gpus > 0 if settings.use_gpu is None else settings.use_gpu
    if use_gpu and gpus == 0:
        raise TrainingError("The cluster has no GPU.", where="batch.use_gpu", fix="Leave it out, or set it to false.")
    if use_gpu:
        machines = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    if not machines:
        raise TrainingError("The cluster has no core to work on.", where="the cluster", fix="Add a machine to it.")
    num_workers = settings.num_workers or (gpus if use_gpu else len(machines))
    available = gpus if use_gpu else sum(int(machine["CPU"]) for machine in machines)
    if num_workers > available:
        raise TrainingError(
            f"{num_workers} workers were asked for and the cluster has {available} {'GPUs' if use_gpu else 'cores'}.",
            where="batch.num_workers",
            fix="Ask for fewer.",
        )
    cores = min(int(machine["CPU"]) for machine in machines)
    threads = settings.threads or max(1, cores // math.ceil(num_workers / len(machines)))
    if threads > cores:
        raise TrainingError(
            f"{threads} threads were asked for and a machine has {cores} cores.", where="batch.threads", fix="Ask for fewer."
        )
    return Pool(num_workers, threads, use_gpu)


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
        num_cpus=1 if pool.use_gpu else pool.threads,
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
