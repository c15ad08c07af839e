"""Files of onboarded users, and of the choices they are onboarded from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from penchant.artifacts import read_json, write_json
from penchant.errors import ArtifactError, DataError
from penchant.scoring.model import TextComparison

_COLUMNS = ("user_id", "prompt", "chosen", "rejected")


def read_choices(path: Path) -> dict[str, list[TextComparison]]:
    """Choices by user from JSONL or Parquet with user_id, prompt, chosen and rejected (texts).

    Raises:
        DataError: The file is missing or unreadable, or a row lacks a text.
    """
    if not path.is_file():
        raise DataError("There is no such file.", where=str(path), fix="Give a JSONL or Parquet file.")
    try:
        if path.suffix == ".parquet":
            rows: list[Any] = pq.read_table(path).to_pylist()
        else:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"It cannot be read ({error}).", where=str(path), fix="Write one JSON object a line.") from None
    choices: dict[str, list[TextComparison]] = {}
    for number, row in enumerate(rows):
        for column in _COLUMNS:
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                raise DataError(
                    f"There is no text {column!r}.", where=f"{path}, row {number}", fix=f"Give {', '.join(_COLUMNS)}."
                )
        choices.setdefault(row["user_id"], []).append(TextComparison(row["prompt"], row["chosen"], row["rejected"]))
    if not choices:
        raise DataError("There is no comparison.", where=str(path), fix="Give at least one.")
    return choices


def write_onboarded(path: Path, embeddings: Mapping[str, Tensor], *, bundle: str, counts: Mapping[str, int]) -> None:
    """Writes onboarded users, atomically. Embeddings mean something under one bundle alone, which the file names."""
    users = {user: {"comparisons": counts[user], "embedding": embedding.tolist()} for user, embedding in embeddings.items()}
    write_json(path, {"bundle": bundle, "users": users})


def read_onboarded(path: Path, *, bundle: str) -> dict[str, Tensor]:
    """Embeddings by user.

    Raises:
        ArtifactError: Not such a file, or one of another bundle.
    """
    values = read_json(path)
    if not isinstance(values, dict) or "users" not in values:
        raise ArtifactError("It holds no onboarded users.", where=str(path), fix="Make it with `penchant onboard`.")
    if values.get("bundle") != bundle:
        raise ArtifactError(
            f"Its users were onboarded under bundle {values.get('bundle')!r}; this is {bundle!r}.",
            where=str(path),
            fix="Onboard them again under this bundle.",
        )
    return {user: torch.tensor(record["embedding"]) for user, record in values["users"].items()}
