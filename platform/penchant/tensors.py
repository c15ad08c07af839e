"""Tensors on disk, as safetensors, whole or not at all.

Apart from `artifacts`, so that a command which needs no tensor does not load torch.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from penchant.artifacts import explain_disk_errors
from penchant.errors import ArtifactError


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes tensors to a safetensors file atomically."""
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
            os.chmod(temporary, 0o644)  # safetensors gives it to its owner alone
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_rows(path: Path, name: str, shape: tuple[int, int]) -> Iterator[np.memmap]:
    """Yields a float16 tensor to fill in place, in a safetensors file: it need not fit in memory. The file appears whole.

    Raises:
        OutputError: The disk is full or the folder may not be written.
    """
    size = shape[0] * shape[1] * 2
    header = json.dumps({name: {"dtype": "F16", "shape": shape, "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                file.flush()
                # Taken now: a disk that is full while the mapped file is written to would end the process with a signal.
                os.posix_fallocate(file.fileno(), 0, 8 + len(header) + size)
            rows = np.memmap(temporary, np.float16, "r+", offset=8 + len(header), shape=shape)
            yield rows
            rows.flush()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads a safetensors file (memory-mapped: pages are loaded as they are touched).

    Raises:
        ArtifactError: The file is missing, cut short or not safetensors.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ArtifactError("There is no such file.", where=str(path), fix="Make the bundle again.") from None
    except SafetensorError as error:
        raise ArtifactError(f"It is damaged ({error}).", where=str(path), fix="Make it again.") from None


def optimizer_tensors(names: Sequence[str], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimiser's state as tensors named `<parameter>.<moment>`, so that a checkpoint needs no pickle.

    Args:
        names: Of the parameters, in the order in which the optimiser got them.
    """
    state = optimizer.state_dict()["state"]
    return {f"{names[index]}.{moment}": value.clone() for index, moments in state.items() for moment, value in moments.items()}


def load_optimizer_tensors(names: Sequence[str], optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Restores what `optimizer_tensors` named."""
    state = optimizer.state_dict()
    state["state"] = {}
    for index, name in enumerate(names):
        moments = {key.rpartition(".")[2]: value for key, value in tensors.items() if key.rpartition(".")[0] == name}
        if moments:
            state["state"][index] = moments
    optimizer.load_state_dict(state)


def with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under `prefix.name`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under `prefix.name`, by name."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
