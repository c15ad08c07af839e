"""Checkpoints of a stage: a file for each worker with its fingerprint beside it, checked before it is used.

    checkpoint_000007/worker-00000.safetensors   the worker's tensors
    checkpoint_000007/worker-00000.json          their sha256, and how many workers there were

Ray Train uploads and prunes them. Which one to take up is decided here, from what is in storage: a list that Ray keeps beside
them is one more file that a full disk or a killed driver can cut short.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.fs as pafs
import ray.train
import ray.train.torch
import torch
from ray.train.collective import broadcast_from_rank_zero
from safetensors.torch import load_file
from torch import Tensor

from penchant.artifacts import explain_disk_errors, file_fingerprint, read_json, write_json
from penchant.errors import ArtifactError
from penchant.runtime.training.progress import ProgressLog
from penchant.tensors import write_tensors

_PREFIX, _RAYS_LIST = "checkpoint_", "checkpoint_manager_snapshot.json"


def write_part(folder: Path, tensors: Mapping[str, Tensor], *, rank: int, world_size: int) -> None:
    """Writes a worker's part of a checkpoint.

    Raises:
        OutputError: The disk is full or the folder may not be written.
    """
    path = folder / f"worker-{rank:05d}.safetensors"
    write_tensors(path, tensors)
    write_json(path.with_suffix(".json"), {"workers": world_size, "sha256": file_fingerprint(path)})


def read_parts(folder: Path) -> list[dict[str, Tensor]]:
    """The tensors of each worker, in order of rank (memory-mapped)."""
    return [load_file(path) for path in sorted(folder.glob("worker-*.safetensors"))]


def what_is_wrong(folder: Path) -> str | None:
    """What keeps a checkpoint from being used, in words; None for a whole one."""
    seals = sorted(folder.glob("worker-*.json"))
    try:
        written = [read_json(path) for path in seals]
        workers = {part["workers"] for part in written}
        expected = [part["sha256"] for part in written]
    except (ArtifactError, KeyError, TypeError):
        return "a fingerprint cannot be read"
    if workers != {len(seals)}:
        return "it was not finished"
    for seal, fingerprint in zip(seals, expected, strict=True):
        path = seal.with_suffix(".safetensors")
        if not path.is_file() or file_fingerprint(path) != fingerprint:
            return f"{path.name} is not what was written"
    return None


@dataclass(frozen=True)
class CheckpointStorage:
    """Where a stage's checkpoints are kept: a folder of any of pyarrow's filesystems."""

    filesystem: pafs.FileSystem
    path: str

    def names(self) -> list[str]:
        """The checkpoints that are there, whole or not, oldest first."""
        found = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        names = [info.base_name for info in found if info.type == pafs.FileType.Directory]
        return sorted(name for name in names if name.startswith(_PREFIX) and name.removeprefix(_PREFIX).isdigit())

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """A checkpoint as a folder on this machine."""
        with ray.train.Checkpoint(f"{self.path}/{name}", self.filesystem).as_directory() as folder:
            yield Path(folder)

    def newest_whole(self, warn: Callable[[str], None]) -> str | None:
        """The newest checkpoint that is as it was written; says what was passed over, and why."""
        passed: list[str] = []
        for name in reversed(self.names()):
            with self.open(name) as folder:
                wrong = what_is_wrong(folder)
            if wrong is None:
                if passed:
                    warn(f"{'; '.join(passed)}. Taken up from {name} instead.")
                return name
            passed.append(f"{name} is not used: {wrong}")
        if passed:
            warn(f"{'; '.join(passed)}. No checkpoint is whole: the stage starts from scratch.")
        return None

    def next_number(self) -> int:
        """The number of the checkpoint to come."""
        return max((int(name.removeprefix(_PREFIX)) + 1 for name in self.names()), default=0)

    def remove_part(self, name: str, rank: int) -> None:
        """Removes what a worker has left of a checkpoint that it could not finish."""
        for suffix in ("safetensors", "json"):
            with contextlib.suppress(OSError):
                self.filesystem.delete_file(f"{self.path}/{name}/worker-{rank:05d}.{suffix}")

    def drop_damaged_list(self, warn: Callable[[str], None]) -> None:
        """Removes Ray Train's own list of checkpoints where it was cut short or names what is gone: Ray would refuse to start."""
        listed = f"{self.path}/{_RAYS_LIST}"
        if self.filesystem.get_file_info(listed).type == pafs.FileType.NotFound:
            return
        with self.filesystem.open_input_stream(listed) as file:
            text = file.read()
        try:
            names = [result["checkpoint_dir_name"] for result in json.loads(text)["checkpoint_results"]]
            if all(self.filesystem.get_file_info(f"{self.path}/{name}").type == pafs.FileType.Directory for name in names):
                return
        except (ValueError, KeyError, TypeError):
            pass
        self.filesystem.delete_file(listed)
        warn("Ray Train's list of checkpoints was damaged and is made anew; the checkpoints themselves are looked at one by one.")


class Resumable(Protocol):
    """What can be taken up from its tensors."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes up where the tensors were saved."""


class Checkpointer:
    """Saves a worker's tensors every so often, and finds the last saved ones again.

    Every worker calls it at the same steps; each writes its own file, and a checkpoint counts when all have.

    Args:
        every_seconds: Time between two checkpoints; None to keep none (what a trial of a sweep reports are its looks alone).
        log: Where it says which checkpoint could not be used.
    """

    def __init__(self, every_seconds: float | None, log: ProgressLog) -> None:
        self.every_seconds, self.log, self._last = every_seconds, log, time.monotonic()
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        if every_seconds is not None:
            storage = context.get_storage()
            self.storage = CheckpointStorage(storage.storage_filesystem, storage.experiment_fs_path)
        self._number = 0

    def load(self) -> list[dict[str, Tensor]]:
        """The last whole checkpoint's tensors, a dictionary for each worker that wrote it; empty where there is none."""
        if self.every_seconds is None:
            return []
        found: tuple[str | None, int] = (None, 0)
        if self.rank == 0:
            found = self.storage.newest_whole(lambda words: self.log.write(warning=words)), self.storage.next_number()
        # The first worker looks, for all: they must take up the same one.
        name, self._number = broadcast_from_rank_zero(found)
        if name is None:
            return []
        with self.storage.open(name) as folder:
            return read_parts(folder)

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

    def save(self, tensors: Mapping[str, Tensor], **metrics: Any) -> None:
        """Saves this worker's tensors as part of a checkpoint.

        Raises:
            OutputError: The disk is full, or the storage may not be written. Earlier checkpoints are untouched.
        """
        name = f"{_PREFIX}{self._number:06d}"
        with explain_disk_errors(Path(self.storage.path)), tempfile.TemporaryDirectory() as folder:
            write_part(Path(folder), tensors, rank=self.rank, world_size=self.world_size)
            try:
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name)
            except OSError:
                self.storage.remove_part(name, self.rank)
                raise
        self._number += 1
        self._last = time.monotonic()
