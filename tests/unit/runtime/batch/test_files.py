import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from penchant.errors import ConfigError, DataError
from penchant.runtime.batch.files import (
    check_apart,
    find_files,
    has_stamp,
    join_files,
    parquet_writer,
    read_rows,
    stamped,
    write_table,
)

LOCAL = LocalFileSystem()
TABLE = pa.table({"number": pa.array(range(23))})


@pytest.mark.parametrize("group", [1, 5, 23, 100])
@pytest.mark.parametrize(("start", "stop"), [(0, 23), (4, 6), (5, 10), (7, 23), (22, 23)])
def test_rows_are_those_asked_for(tmp_path, group, start, stop):
    pq.write_table(TABLE, tmp_path / "a.parquet", row_group_size=group)
    rows = read_rows(LOCAL, str(tmp_path / "a.parquet"), start, stop)
    assert rows["number"].to_pylist() == list(range(start, stop))


def test_only_a_whole_file_with_the_stamp_counts(tmp_path):
    path = str(tmp_path / "deep" / "a.parquet")
    assert not has_stamp(LOCAL, path, "one")
    write_table(LOCAL, path, TABLE, stamped(TABLE.schema, "one", bundle="b"))
    assert has_stamp(LOCAL, path, "one")
    assert not has_stamp(LOCAL, path, "two")
    (tmp_path / "deep" / "a.parquet").write_bytes(b"PAR1 cut short")
    assert not has_stamp(LOCAL, path, "one")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = str(tmp_path / "a.parquet")
    write_table(LOCAL, path, TABLE, TABLE.schema)
    with pytest.raises(RuntimeError, match="half-way"), parquet_writer(LOCAL, path, TABLE.schema) as writer:
        writer.write_table(TABLE.slice(0, 1))
        raise RuntimeError("half-way")
    assert pq.read_table(path).equals(TABLE)
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_parts_are_joined_in_order(tmp_path):
    parts = [str(tmp_path / f"{number}.parquet") for number in range(3)]
    for number, part in enumerate(parts):
        write_table(LOCAL, part, TABLE.slice(8 * number, 8), TABLE.schema)
    join_files(LOCAL, parts, str(tmp_path / "all.parquet"), stamped(TABLE.schema, "s"))
    assert pq.read_table(tmp_path / "all.parquet")["number"].to_pylist() == list(range(23))


def test_files_of_a_folder(tmp_path):
    for name in ("b.parquet", "x/a.parquet", ".hidden.parquet", "_parts/c.parquet", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    assert [file.name for file in find_files(str(tmp_path), [".parquet"])] == ["b.parquet", "x/a.parquet"]
    assert [file.name for file in find_files(str(tmp_path / "b.parquet"), [".parquet"])] == ["b.parquet"]
    with pytest.raises(DataError, match=r"no \.csv file"):
        find_files(str(tmp_path), [".csv"])
    with pytest.raises(DataError, match="no such file"):
        find_files(str(tmp_path / "nowhere"), [".parquet"])


def test_a_changed_file_is_another(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"1")
    before = find_files(str(tmp_path), [".parquet"])
    assert find_files(str(tmp_path), [".parquet"]) == before
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    assert find_files(str(tmp_path), [".parquet"]) != before


def test_results_do_not_land_among_the_inputs(tmp_path):
    file = tmp_path / "in" / "a.parquet"
    file.parent.mkdir()
    file.write_bytes(b"1")
    for inputs, out in ((file.parent, file.parent), (file.parent, file.parent / "out"), (file, file.parent)):
        with pytest.raises(ConfigError, match="among the inputs"):
            check_apart(str(inputs), str(out))
    for inputs, out in ((file.parent, tmp_path / "in-scored"), (file, file.parent / "out")):
        check_apart(str(inputs), str(out))
