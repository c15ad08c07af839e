"""Starting Ray and running one stage on a group of Ray Train workers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from penchant.artifacts import explain_disk_errors
from penchant.errors import OutputError, PenchantError, TrainingError
from penchant.runtime.threads import run_beside
from penchant.runtime.training.checkpoints import CheckpointStorage
from penchant.runtime.training.config import WorkerSettings
from penchant.runtime.training.progress import ProgressLog, open_log
from penchant.storage import Location, open_location

_REGROUP_SECONDS = 20
"""A group that may be smaller waits so long for the workers that it had; then it is made anew of what is there."""
_LOST = {
    "WorkerHealthCheckFailedError": "its process has ended",
    "WorkerHealthCheckTimeoutError": "it gives no sign of life",
}
"""What Ray Train's errors mean."""


@dataclass(frozen=True)
class WorkerGroup:
    """How many workers a stage gets, and what each may use."""

    num_workers: int
    min_workers: int
    """Fewer than `num_workers` where the stage may go on with so few."""
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
    min_workers = min(settings.min_workers or num_workers, num_workers)
    available = gpus if use_gpu else cores
    if min_workers > available:
        raise TrainingError(
            f"{min_workers} workers were asked for and the cluster has {available} {'GPUs' if use_gpu else 'cores'}.",
            where="workers.num_workers",
            fix="Ask for fewer.",
        )
    return WorkerGroup(num_workers, min_workers, settings.threads or _threads(num_workers, use_gpu=use_gpu), use_gpu)


def _threads(num_workers: int, *, use_gpu: bool) -> int:
    """So many that the workers of one machine share its cores. All have as many: the machine with the fewest a worker decides."""
    kind = "GPU" if use_gpu else "CPU"
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind, 0) >= 1]
    # As run_stage places them: beside each other on the GPUs of a machine, or on as many machines as there are.
    beside = [min(num_workers, int(each["GPU"])) if use_gpu else math.ceil(num_workers / len(machines)) for each in machines]
    return max(1, min((int(each.get("CPU", 1)) // count for each, count in zip(machines, beside, strict=True)), default=1))


def run_stage(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    name: str,
    storage: Location,
    settings: WorkerSettings,
    in_process: bool = False,
    on_look: Callable[[Any, Any], None] | None = None,
    callbacks: Sequence[UserCallback] = (),
    resources_per_worker: dict[str, float] | None = None,
) -> None:
    """Runs `loop(config)` on every worker of the group. The same name in the same storage (a folder or a URI) resumes its last
    checkpoint.

    Args:
        in_process: One worker, in this process and thread, without checkpoints: nothing is started (a sweep's trials).
        on_look: Called by every worker with the trainer and each progress that it yields. Such a stage keeps no checkpoints: what
            it reports to Ray Train are its looks alone.
        callbacks: Ray Train's, beside the workers.
        resources_per_worker: Cores (`CPU`) and GPUs (`GPU`) that each worker is given; by default one GPU, or one core.

    Raises:
        PenchantError: What a worker raised, or a `TrainingError` for a failure that is not the user's.
    """
    group = choose_workers(settings)
    # Ray Train's own elastic groups are not used: in Ray 2.60 they choose another size and do not go on (docs/decisions/0015).
    elastic = group.min_workers < group.num_workers and not in_process
    num_workers = max(group.min_workers, _workers_left(group)) if elastic else group.num_workers
    filesystem, path = open_location(storage)
    log = open_log(config["log"])
    CheckpointStorage(filesystem, f"{path}/{name}").drop_damaged_list(lambda words: log.write(warning=words))
    # Ray Train takes these from the driver's environment, and hands them on.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(settings.hang_seconds)
    if elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_REGROUP_SECONDS))
    beside: list[Any] = [*callbacks] if in_process else [*callbacks, _Watch(log)]
    # Ray's types here are those of its first version, which knew neither such callbacks nor a limit of the controller's own.
    failures: dict[str, Any] = {"max_failures": settings.max_failures} | ({"controller_failure_limit": 0} if elastic else {})
    tries_left = 0 if in_process else settings.max_failures
    while True:
        trainer = TorchTrainer(
            loop,
            train_loop_config=config
            | {
                "threads": group.threads,
                "checkpoint_seconds": None if in_process or on_look else settings.checkpoint_seconds,
                "on_look": on_look,
            },
            scaling_config=ScalingConfig(
                use_gpu=group.use_gpu,
                num_workers=0 if in_process else num_workers,
                # GPUs of one machine are joined best; cores and memory are shared with whoever is on the same machine.
                placement_strategy="PACK" if group.use_gpu else "SPREAD",
                resources_per_worker=resources_per_worker,
            ),
            torch_config=TorchConfig(timeout_s=math.ceil(settings.hang_seconds)),
            run_config=RunConfig(
                name=name,
                storage_path=str(storage),
                failure_config=FailureConfig(**failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                callbacks=beside,
            ),
        )
        try:
            trainer.fit() if in_process else run_beside(trainer.fit)
            return
        except PenchantError:
            raise
        except Exception as error:
            if tries_left and isinstance(getattr(error, "controller_failure", None), ray.exceptions.RayActorError):
                # A worker died while the controller was talking to it: Ray Train takes that for a fault of its own.
                tries_left -= 1
                log.write(warning="A worker is lost: its process has ended. The stage goes on from its last checkpoint.")
                continue
            left = _workers_left(group) if elastic and _lacks_room(error) else 0
            if not group.min_workers <= left < num_workers:
                raise _cause(error, name) from error
            log.write(warning=f"There is room for {left} of {num_workers} workers. The stage goes on with these.")
            num_workers = left


def _lacks_room(error: BaseException) -> bool:
    """Whether a group could not be made of as many workers as it was to have."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def _workers_left(group: WorkerGroup) -> int:
    """How many of a group's workers the cluster has room for now."""
    return min(group.num_workers, int(ray.cluster_resources().get("GPU" if group.use_gpu else "CPU", 0)))


class _Watch(UserCallback):
    """Beside the workers: says when one is lost, and ends the stage at once for what another try cannot mend."""

    def __init__(self, log: ProgressLog) -> None:
        self.log = log

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises the user's mistake, which Ray Train does not try again; says what else it was."""
        for error in worker_exceptions.values():
            if isinstance(error, PenchantError):
                raise error
        known = [
            (rank, _LOST[type(error).__name__]) for rank, error in worker_exceptions.items() if type(error).__name__ in _LOST
        ]
        # A worker that is lost takes the others along: what these say is where they waited for it.
        rank, words = known[0] if known else next((rank, _first_line(error)) for rank, error in worker_exceptions.items())
        self.log.write(warning=f"Worker {rank} is lost: {words}. The stage goes on from its last checkpoint.")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__


def _cause(error: BaseException, stage: str) -> PenchantError:
    """The user's mistake behind Ray's wrapping, or a full disk, if there is one."""
    failures = getattr(error, "worker_failures", None) or {}
    controller = getattr(error, "controller_failure", None)
    seen: list[BaseException] = [error, *failures.values(), *([controller] if controller else [])]
    for candidate in seen:
        for cause in (candidate, getattr(candidate, "cause", None), candidate.__cause__):
            if isinstance(cause, PenchantError):
                return cause
            if isinstance(cause, OSError):
                try:
                    with explain_disk_errors(Path(stage)):
                        raise cause
                except OutputError as explained:
                    return explained
                except OSError:
                    pass
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
