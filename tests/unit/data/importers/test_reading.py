import sys
from types import SimpleNamespace

import pytest

from penchant.data.importers.reading import file_rows, find_parts
from penchant.errors import DataError, StorageError

ROWS = [{"text": "One,\nin two lines", "other": "a"}, {"text": None, "other": "b"}, {"text": 'with "quotes"', "other": "c"}]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "json.gz", "parquet", "csv"])
def test_every_kind_of_file_gives_the_same_rows(write_rows, kind):
    path = write_rows(f"rows.{kind}", ROWS)
    assert [row["text"] for row in file_rows(path, ("text",))] == [row["text"] for row in ROWS]


def test_only_the_columns_that_are_asked_for_are_read(write_rows):
    for kind in ("parquet", "csv"):
        assert next(file_rows(write_rows(f"rows.{kind}", ROWS), ("text", "missing"))) == {"text": ROWS[0]["text"]}


def test_a_batch_at_a_time(write_rows):
    path = write_rows("rows.parquet", [{"number": number} for number in range(3000)])
    rows = file_rows(path)
    assert [next(rows)["number"] for _ in range(2)] == [0, 1]
    assert sum(1 for _ in rows) == 2998


def test_the_files_of_a_folder_in_order(tmp_path, write_rows):
    for name in ("data/train-00001.parquet", "data/train-00000.parquet", "other/test.jsonl", "readme.md", ".hidden.jsonl"):
        write_rows(name, [{"text": name}])
    parts = find_parts(str(tmp_path), columns=("text",))
    assert [(part.name, part.split, part.folder) for part in parts] == [
        ("data/train-00000.parquet", "train", "data"),
        ("data/train-00001.parquet", "train", "data"),
        ("other/test.jsonl", "test", "other"),
    ]
    where, row = next(parts[2].rows())
    assert where == f"{tmp_path}/other/test.jsonl, row 0"
    assert row == {"text": "other/test.jsonl"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", b'{"a": 1}\n{"a"', "line 2: It is not JSON"),
        ("rows.jsonl", b"[]\n", ""),
        ("rows.jsonl", b"7\n", "line 1: It is a int, not an object"),
        ("rows.jsonl", b"\xff\xfe{}", "cannot be read as jsonl"),
        ("rows.jsonl.gz", b"no gzip", "cannot be read as gz"),
        ("rows.json", b"[1, 2", "It is not JSON"),
        ("rows.parquet", b"PAR1", "cannot be read as parquet"),
        ("rows.csv", b"a,b\n1,2\n3\n", "cannot be read as csv"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    if not said:
        assert list(file_rows(path)) == []
        return
    with pytest.raises(DataError) as raised:
        list(file_rows(path))
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match="hub:OWNER/NAME"):
        find_parts("owner/name", columns=())
    with pytest.raises(DataError, match="no file of"):
        find_parts(str(tmp_path), columns=())
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"it has a\.jsonl"):
        find_parts(str(tmp_path), columns=(), wanted=lambda name: False)


def test_the_hub_is_read_through_datasets(monkeypatch):
    asked = []

    def load_dataset(name, config, **options):
        asked.append((name, config, options))
        return {"train": iter([{"text": "one", "other": 1}])}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    parts = find_parts("hub:owner/name@r", columns=("text",), hub_config="talks", hub_folders=("a", "b"))
    assert [(part.name, part.split, part.folder) for part in parts] == [("a/train", "train", "a"), ("b/train", "train", "b")]
    assert list(parts[0].rows()) == [("hub:owner/name@r (a/train), row 0", {"text": "one"})]
    assert asked[1] == ("owner/name", "talks", {"data_dir": "b", "revision": "r", "streaming": True})


def test_without_datasets_or_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'penchant\[hub\]'"):
        find_parts("hub:owner/name", columns=())

    def refuse(*args, **options):
        raise RuntimeError("Dataset scripts are no longer supported")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=refuse))
    with pytest.raises(StorageError, match=r"scripts are no longer supported.*download the files"):
        find_parts("hub:owner/name", columns=())
