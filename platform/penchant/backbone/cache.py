"""The feature cache: float16 rows keyed by text, in append-only blocks that appear whole.

Keyed by the text, not by a data set, so that data sets that share texts share features. Several processes may write at
once, since each block has a name of its own.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from penchant.tensors import write_tensors

_KEY_BYTES = 16


def text_key(text: tuple[str, str]) -> bytes:
    """A 16-byte key of a (prompt, response) text."""
    prompt, response = text[0].encode("utf-8", "surrogatepass"), text[1].encode("utf-8", "surrogatepass")
    # In one go: of a score under the frozen phase, this is the largest part.
    counted = len(prompt).to_bytes(8, "little") + prompt + len(response).to_bytes(8, "little") + response
    return hashlib.blake2b(counted, digest_size=_KEY_BYTES).digest()


class FeatureCache:
    """Blocks of features of one base model and window, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def blocks(self, *, values: bool = True) -> Iterator[tuple[list[bytes], np.ndarray]]:
        """Keys and rows (N, F) of each block, one block at a time; without `values`, (0, F).

        A block that cannot be read is left out, and its texts will be computed again.
        """
        for path in sorted(self.folder.glob("block-*.safetensors")):
            try:
                with safe_open(path, framework="np") as block:
                    keys, rows = block.get_tensor("keys"), block.get_slice("values")
                    rows = rows[:] if values else rows[:0]
            except (SafetensorError, OSError):
                continue
            yield [row.tobytes() for row in keys], rows

    def keys(self) -> set[bytes]:
        """The keys of every cached row."""
        return {key for keys, _ in self.blocks(values=False) for key in keys}

    def take(self, wanted: Collection[bytes]) -> dict[bytes, np.ndarray]:
        """The cached rows (F,) among the wanted ones, by key."""
        rows: dict[bytes, np.ndarray] = {}
        for keys, values in self.blocks():
            rows |= {key: value.copy() for key, value in zip(keys, values, strict=True) if key in wanted}
        return rows

    def add(self, keys: Sequence[bytes], values: np.ndarray) -> None:
        """Adds a block of rows (N, F) under their keys, atomically.

        Raises:
            OutputError: The disk is full or the folder may not be written.
        """
        key_rows = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES).copy()
        write_tensors(
            self.folder / f"block-{uuid.uuid4().hex}.safetensors",
            {"keys": torch.from_numpy(key_rows), "values": torch.from_numpy(np.ascontiguousarray(values))},
        )
