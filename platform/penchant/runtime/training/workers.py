"""Starting Ray and running one stage on a group of Ray Train workers."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors.torch import load_file, save_file

from penchant.errors import PenchantError, TrainingError
from penchant.runtime.training.config import WorkerSettings


@dataclass(frozen=True)
class WorkerGroup:
    """How many workers a stage gets, and what each may use."""

    num_workers: int
    threads: int
    use_gpu: bool


def choose_workers(settings: WorkerSettings) -> WorkerGroup:
    """The group that the settings ask for, or every GPU, or every core of this cluster."""
    resources = ray.cluster_resources()
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    use_gpu = gpus > 0 if settings.use_gpu is None else settings.use_gpu
    if use_gpu and gpus == 0:
        raise TrainingError("The cluster has no GPU.", where="workers.use_gpu", fix="Leave it out, or set it to false.")
    num_workers = settings.num_workers or (gpus if use_gpu else 1)
    available = gpus if use_gpu else cores
    if num_workers > available:
        raise TrainingError(
            f"{num_workers} workers were asked for and the cluster has {available} {'GPUs' if use_gpu else 'cores'}.",
            where="workers.num_workers",
            fix="Ask for fewer.",
        )
    return WorkerGroup(num_workers, settings.threads or max(1, cores // num_workers), use_gpu)


def run_stage(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    name: str,
    storage: Path,
    settings: WorkerSettings,
    in_process: bool = False,
    on_look: Callable[[Any, Any], None] | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> None:
    """Runs `loop(config)` on every worker of the group. The same name in the same storage resumes its last checkpoint.

    Args:
        in_process: One worker, in this process and thread, without checkpoints: nothing is started (a sweep's trials).
        on_look: Called by every worker with the trainer and each progress that it yields.
        callbacks: Ray Train's, beside the workers.

    Raises:
        PenchantError: What a worker raised, or a `TrainingError` for a failure that is not the user's.
    """
    group = choose_workers(settings)
    trainer = TorchTrainer(
        loop,
        train_loop_config=config
        | {
            "threads": group.threads,
            "checkpoint_seconds": None if in_process else settings.checkpoint_seconds,
            "on_look": on_look,
        },
        scaling_config=ScalingConfig(num_workers=0 if in_process else group.num_workers, use_gpu=group.use_gpu),
        torch_config=TorchConfig(timeout_s=600),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=list(callbacks),
        ),
    )
    try:
        trainer.fit() if in_process else _fit_beside(trainer)
    except PenchantError:
        raise
    except Exception as error:
        raise _cause(error, name) from error


def _fit_beside(trainer: TorchTrainer) -> None:
    """Runs `trainer.fit()` on a thread of its own: on the main one, Ray takes Ctrl-C over and ends the process by itself."""
    failure: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _cause(error: BaseException, stage: str) -> PenchantError:
    """The user's mistake behind Ray's wrapping, if there is one."""
    failures = getattr(error, "worker_failures", None) or {}
    seen: list[BaseException] = [error, *failures.values()]
    for candidate in seen:
        for cause in (candidate, getattr(candidate, "cause", None), candidate.__cause__):
            if isinstance(cause, PenchantError):
                return cause
    last = str(seen[-1]).strip().splitlines()
    return TrainingError(
        f"The stage failed: {last[-1] if last else type(seen[-1]).__name__}",
        where=stage,
        fix="Run it again: it resumes from its last checkpoint.",
    )


def prepare_worker(config: dict[str, Any]) -> torch.device:
    """Sets this worker's threads and returns its device."""
    torch.set_num_threads(config["threads"])
    return ray.train.torch.get_device()


class Resumable(Protocol):
    """What can be taken up from its tensors."""

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Takes up where the tensors were saved."""


class Checkpointer:
    """Saves a worker's tensors every so often, and finds the last saved ones again.

    Every worker calls it at the same steps; each writes its own file, and a checkpoint counts when all have.

    Args:
        every_seconds: Time between two; None to keep none (in a trial of a sweep, Ray Train has nowhere to put them).
    """

    def __init__(self, every_seconds: float | None) -> None:
        self.every_seconds, self._last = every_seconds, time.monotonic()
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()

    def load(self) -> list[dict[str, torch.Tensor]]:
        """The last checkpoint's tensors, a dictionary for each worker that wrote it; empty where there is none."""
        checkpoint = None if self.every_seconds is None else ray.train.get_checkpoint()
        if checkpoint is None:
            return []
        with checkpoint.as_directory() as folder:
            return [load_file(path) for path in sorted(Path(folder).glob("worker-*.safetensors"))]

    def resume(self, trainer: Resumable) -> float:
        """Takes a trainer whose state is the same on every worker up from the last checkpoint; returns the seconds spent before.

        Any worker's file will do, whatever their number is now.
        """
        saved = self.load()
        if not saved:
            return 0.0
        seconds = float(saved[0].pop("seconds"))
        trainer.load_state(saved[0])
        return seconds

    def due(self) -> bool:
        """Whether it is time, decided by the first worker for all."""
        if self.every_seconds is None:
            return False
        due = time.monotonic() - self._last >= self.every_seconds
        if self.world_size > 1:
            flag = torch.tensor(float(due), device=ray.train.torch.get_device())
            torch.distributed.broadcast(flag, src=0)
            due = bool(flag)
        return due

    def save(self, tensors: dict[str, torch.Tensor], **metrics: Any) -> None:
        """Saves this worker's tensors as part of a checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, Path(folder) / f"worker-{self.rank:05d}.safetensors")
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        self._last = time.monotonic()
