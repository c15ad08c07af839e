import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penchant.adapters.examples import Example
from penchant.adapters.tables import read_examples, write_examples
from penchant.errors import DataError

COUNTS = (5, 1, 3, 2, 4)
USERS = {f"user {number}": [Example(f"{number} {at}", str(at)) for at in range(count)] for number, count in enumerate(COUNTS)}


def test_what_is_written_is_read(tmp_path):
    write_examples(tmp_path / "examples.parquet", USERS)
    assert read_examples(tmp_path / "examples.parquet") == USERS


def test_workers_own_all_users_once_and_have_about_as_much_to_do(tmp_path):
    path = tmp_path / "examples.parquet"
    write_examples(path, USERS)
    for world_size in (2, 3, 7):
        shares = [read_examples(path, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert sorted(user for share in shares for user in share) == sorted(USERS)
        assert {user: rows for share in shares for user, rows in share.items()} == USERS
    first, second = (sum(map(len, read_examples(path, rank=rank, world_size=2).values())) for rank in range(2))
    assert abs(first - second) <= 3


def test_a_bad_table_is_refused(tmp_path):
    path = tmp_path / "examples.parquet"
    with pytest.raises(DataError, match="no such file"):
        read_examples(path)
    path.write_text("user_id,prompt,target")
    with pytest.raises(DataError, match="not Parquet"):
        read_examples(path)
    good = {"user_id": ["a", "a"], "prompt": ["x", "y"], "target": ["1", "2"]}
    pq.write_table(pa.table({name: good[name] for name in ("user_id", "prompt")}), path)
    with pytest.raises(DataError, match="column target is missing"):
        read_examples(path)
    pq.write_table(pa.table(good | {"target": [1, 2]}), path)
    with pytest.raises(DataError, match="column target is int64"):
        read_examples(path)
    pq.write_table(pa.table(good | {"prompt": ["x", None]}), path)
    with pytest.raises(DataError, match=r"row 1: prompt is empty"):
        read_examples(path)
