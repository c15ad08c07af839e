"""A trained method in a folder::

    method.json          which method, its settings and those of the shared head, its shapes
    method.safetensors   its weights, without its users
    users.safetensors    the vectors of the users of training: (U, D)

`save_method` leaves it, and `load_method` reads it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from penchant.artifacts import METHOD, read_json, write_json
from penchant.config import validate_settings
from penchant.methods.method import Method, Shapes
from penchant.methods.registry import MethodChoice, MethodSettings, build_method
from penchant.reward.config import HeadSettings
from penchant.tensors import read_tensors, write_tensors


def save_method(folder: Path, method: Method, vector_UD: Tensor, settings: MethodSettings, head: HeadSettings) -> None:
    """Writes a method and the vectors of the users of training."""
    own = method.user_parameters()
    shared = {name: tensor for name, tensor in method.state_dict().items() if name not in own}
    write_tensors(folder / "method.safetensors", shared)
    write_tensors(folder / "users.safetensors", {"vector": vector_UD})
    parts = {"settings": settings.model_dump(mode="json"), "head": head.model_dump(mode="json"), "shapes": asdict(method.shapes)}
    write_json(folder / METHOD, parts)


def load_method(folder: Path) -> tuple[Method, Tensor]:
    """A method that `save_method` has left, and the vectors (U, D) of the users of training.

    Raises:
        ArtifactError: A file is missing or damaged.
        ConfigError: Its settings are not this version's.
    """
    saved, where = read_json(folder / METHOD), str(folder / METHOD)
    settings = validate_settings(MethodChoice, {"method": saved["settings"]}, where=where).method
    head = validate_settings(HeadSettings, saved["head"], where=where)
    method = build_method(settings, Shapes(**(saved["shapes"] | {"users": 0})), head)
    own = {name: value for name, value in method.state_dict().items() if name in method.user_parameters()}
    method.load_state_dict(read_tensors(folder / "method.safetensors") | own)
    return method.eval(), read_tensors(folder / "users.safetensors")["vector"]
