"""The data contract: three tables, their columns and types, and how a problem in them is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

SPLITS = ("train", "valid", "test")
"""Splits of comparisons; an integer-coded split is an index into this."""
COHORTS = ("seen", "unseen")
"""Whether a user is in training."""
TABLES = ("responses", "comparisons", "users")
"""The tables of a data set: one Parquet file or a partitioned directory each."""

REQUIRED: dict[str, tuple[str, ...]] = {
    "responses": ("response_id", "prompt_id", "prompt", "response"),
    "comparisons": ("user_id", "prompt_id", "chosen_id", "rejected_id", "split"),
    "users": ("user_id", "cohort"),
}
"""Columns that a table must have; all are strings."""
OPTIONAL: dict[str, tuple[str, ...]] = {
    "responses": (),
    "comparisons": ("controversial", "timestamp"),
    "users": ("group",),
}
"""Columns that penchant reads where they are there. Any others are kept as they are."""
LISTED_PER_KIND = 20
"""Problems of one kind that a report lists; the rest are counted."""


@dataclass(frozen=True)
class Problem:
    """Something in the tables that breaks the contract (error) or that was mended (warning)."""

    kind: str
    """A short name of the check, such as `unknown_response`."""
    file: str
    message: str
    fix: str
    row: int | None = None
    """0-based row of the table."""
    value: str | None = None
    severity: Literal["error", "warning"] = "error"
    count: int = 1
    """How many rows of this kind there are; more than one only on the last that is listed."""

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file}, row {self.row}"
        value = "" if self.value is None else f" ({self.value!r})"
        more = f" And {self.count - 1:,} more." if self.count > 1 else ""
        return f"{place}: {self.message}{value}. {self.fix}{more}"


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds text, plainly or by dictionary."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
