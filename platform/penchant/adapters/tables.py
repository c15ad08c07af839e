"""Users' examples as a Parquet table: user_id, prompt, target; a user's rows in order, oldest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penchant.adapters.examples import Example
from penchant.artifacts import explain_disk_errors
from penchant.errors import DataError

_COLUMNS = ("user_id", "prompt", "target")


def write_examples(path: Path, users: Mapping[str, Sequence[Example]]) -> None:
    """Writes users' examples, whole or not at all.

    Raises:
        OutputError: The disk is full or the folder may not be written.
    """
    rows = [(user, example.prompt, example.target) for user, examples in users.items() for example in examples]
    table = pa.table({name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(_COLUMNS)})
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        pq.write_table(table, temporary)
        temporary.replace(path)


def read_examples(path: Path, *, rank: int = 0, world_size: int = 1) -> dict[str, list[Example]]:
    """The examples of the users whom a worker owns; of all users, for one worker.

    Users are dealt by how many examples they have, so that every worker gets about as much to do. A worker holds the texts of
    its own users and one batch of the file's.

    Raises:
        DataError: There is no such file, it is not Parquet, or a column is missing, is no text or has an empty cell.
    """
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError("There is no such file.", where=str(path), fix="Check the path.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"It is not Parquet ({error}).", where=str(path), fix="Write it as Parquet.") from None
    with file:
        _check(file, path)
        counts = file.read(columns=["user_id"])["user_id"].value_counts().to_pylist()
        ordered = sorted((-row["counts"], row["values"]) for row in counts)
        own = [user for _, user in ordered[rank::world_size]]
        users: dict[str, list[Example]] = {user: [] for user in own}
        chosen = pa.array(own, pa.string())
        for batch in file.iter_batches(columns=list(_COLUMNS)):
            for row in batch.filter(pc.is_in(batch["user_id"].cast(pa.string()), chosen)).to_pylist():
                users[row["user_id"]].append(Example(row["prompt"], row["target"]))
    return users


def _check(file: pq.ParquetFile, path: Path) -> None:
    schema = file.schema_arrow
    for name in _COLUMNS:
        at = schema.get_field_index(name)
        if at < 0:
            raise DataError(f"The column {name} is missing.", where=str(path), fix=f"Columns: {', '.join(_COLUMNS)}.")
        kind = schema.field(at).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DataError(f"The column {name} is {kind}.", where=str(path), fix="Make it text; ids and numbers too.")
    row = 0
    for batch in file.iter_batches(columns=list(_COLUMNS)):
        for name in _COLUMNS:
            if batch[name].null_count:
                empty = row + pc.index(batch[name].is_null(), True).as_py()
                raise DataError(f"{name} is empty.", where=f"{path}, row {empty}", fix="Fill it, or leave the row out.")
        row += len(batch)
