"""What each method says of the test comparisons: the input of every metric."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from penchant.artifacts import explain_disk_errors
from penchant.errors import ArtifactError

METHODS = ("uniform", "frozen", "personalised", "oracle", "wrong_user")
"""Methods in the order that tables show them. `frozen` is the frozen phase's personalised head, where there are experts too;
`oracle` is absent where groups are not known."""


@dataclass(frozen=True)
class Judgements:
    """Test comparisons, and each method's margin on them: aligned arrays (C,)."""

    user: np.ndarray
    """int64: row of the data set's users."""
    prompt: np.ndarray
    """int64: row of the data set's prompts."""
    seen: np.ndarray
    """bool: whether the user was in training."""
    controversial: np.ndarray | None
    """bool: whether tastes disagree on the pair, where that is known."""
    margins: dict[str, np.ndarray]
    """Method -> score(chosen) - score(rejected)."""

    def take(self, mask: np.ndarray) -> Judgements:
        """The comparisons under a mask."""
        return Judgements(
            user=self.user[mask],
            prompt=self.prompt[mask],
            seen=self.seen[mask],
            controversial=None if self.controversial is None else self.controversial[mask],
            margins={name: margin[mask] for name, margin in self.margins.items()},
        )

    def cells(self) -> dict[tuple[str, str], np.ndarray]:
        """(cohort, kind) -> mask; cells without a comparison are left out."""
        kinds = {"all": np.ones(len(self.user), dtype=bool)}
        if self.controversial is not None:
            kinds |= {"common": ~self.controversial, "controversial": self.controversial}
        cohorts = {"seen": self.seen, "unseen": ~self.seen}
        masks = {(cohort, kind): c & k for cohort, c in cohorts.items() for kind, k in kinds.items()}
        return {name: mask for name, mask in masks.items() if mask.any()}


_MARGIN = "margin_"


def write_judgements(path: Path, judgements: Judgements) -> None:
    """Writes them as Parquet, so that two runs can be compared choice by choice."""
    columns = {name: getattr(judgements, name) for name in ("user", "prompt", "seen", "controversial")}
    columns |= {_MARGIN + name: margin.astype(np.float32) for name, margin in judgements.margins.items()}
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        try:
            pq.write_table(table, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def read_judgements(path: Path) -> Judgements:
    """Reads what `write_judgements` wrote.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"It cannot be read ({error}).", where=str(path), fix="Evaluate the run again.") from None
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return Judgements(
        user=columns["user"],
        prompt=columns["prompt"],
        seen=columns["seen"],
        controversial=columns.get("controversial"),
        margins={name.removeprefix(_MARGIN): column for name, column in columns.items() if name.startswith(_MARGIN)},
    )
