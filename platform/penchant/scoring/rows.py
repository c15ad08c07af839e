"""Rows of an Arrow table, each a (user, prompt, response): the columns that a bundle has to say about them.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penchant.errors import DataError
from penchant.scoring.model import PersonalisedRewardModel

ROW_COLUMNS = ("user_id", "prompt", "response")
"""What a row has to have, as text."""
SCORE_FIELDS = (
    pa.field("score", pa.float32()),
    pa.field("uniform", pa.float32()),
    pa.field("personalisation", pa.string()),
    pa.field("bundle", pa.string()),
)
"""What `score_rows` adds: the user's score, the uniform one, who the user was to the bundle, and the bundle's name."""


def score_rows(model: PersonalisedRewardModel, table: pa.Table) -> pa.Table:
    """The table with four more columns, see `SCORE_FIELDS`; any mix of users and texts, in the table's order."""
    encoded = _text(table["user_id"]).dictionary_encode()
    users = [model.resolve(user) for user in encoded.dictionary.to_pylist()]
    user_N = encoded.indices.to_numpy().astype(np.int64)
    texts = list(zip(_text(table["prompt"]).to_pylist(), _text(table["response"]).to_pylist(), strict=True))
    score_N, uniform_N = model.score_texts(users, user_N, texts)
    known = pa.array([user.personalisation for user in users], pa.string())
    columns = (
        pa.array(score_N.numpy(), pa.float32()),
        pa.array(uniform_N.numpy(), pa.float32()),
        known.take(encoded.indices),
        pa.repeat(model.manifest.name, len(table)),
    )
    for field, column in zip(SCORE_FIELDS, columns, strict=True):
        table = table.append_column(field, column)
    return table


def check_columns(schema: pa.Schema, columns: Sequence[str], *, where: str) -> None:
    """Checks that a table has these columns, as text.

    Raises:
        DataError: One is missing or is not text.
    """
    for name in columns:
        if name not in schema.names:
            raise DataError(f"There is no column {name!r}.", where=where, fix=f"It needs {', '.join(columns)}.")
        if not is_text(schema.field(name).type):
            kind = schema.field(name).type
            raise DataError(f"Column {name!r} holds {kind}, not text.", where=where, fix="Write it as strings.")


def check_texts(batches: Iterable[pa.RecordBatch | pa.Table], columns: Sequence[str], *, where: str, start: int = 0) -> int:
    """Checks that every row has these texts; returns the number of rows, with those before.

    Args:
        start: Rows of the file before these.

    Raises:
        DataError: A text is missing or blank; it says in which row, counted from 0.
    """
    for batch in batches:
        for name in columns:
            column = _text(batch[name])
            blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
            row = pc.index(blank, True).as_py()
            if row >= 0:
                what = "missing" if column[row].as_py() is None else "blank"
                raise DataError(f"{name} is {what}.", where=f"{where}, row {start + row}", fix="Give a text, or drop the row.")
        start += batch.num_rows
    return start


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # A column of nulls alone has no type: it is its rows that are wrong, if there are any.
    return pa.types.is_null(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _text(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one array of strings."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # too long for one array of 32-bit offsets
        column = pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in column.chunks])
    return column if pa.types.is_large_string(column.type) else column.cast(pa.string())
