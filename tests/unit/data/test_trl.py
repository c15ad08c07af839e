import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penchant.data.dataset import read_tables
from penchant.data.importers.trl import import_trl
from penchant.errors import DataError

PLAIN = {"user_id": "u", "prompt": "Why is the sky blue?", "chosen": "Rayleigh.", "rejected": "Paint."}


def message(role, content):
    return {"role": role, "content": content}


FORMATS = {
    "plain": PLAIN,
    "plain, implicit prompt": {
        "user_id": "u", "chosen": "Why is the sky blue? Rayleigh.", "rejected": "Why is the sky blue? Paint.",
    },
    "conversational": {
        "user_id": "u",
        "prompt": [message("user", "Why is the sky blue?")],
        "chosen": [message("assistant", "Rayleigh.")],
        "rejected": [message("assistant", "Paint.")],
    },
    "conversational, implicit prompt": {
        "user_id": "u",
        "chosen": [message("user", "Why is the sky blue?"), message("assistant", "Rayleigh.")],
        "rejected": [message("user", "Why is the sky blue?"), message("assistant", "Paint.")],
    },
}  # fmt: skip


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_tables(tmp_path, name, suffix):
    import_trl(write(tmp_path / f"data{suffix}", [FORMATS[name]]), tmp_path / "out")
    import_trl(write(tmp_path / "plain.jsonl", [PLAIN]), tmp_path / "plain")
    found, expected = read_tables(tmp_path / "out"), read_tables(tmp_path / "plain")
    assert found == expected
    assert expected["responses"]["response"].to_pylist() == ["Rayleigh.", "Paint."]


def test_multi_turn_prompts_keep_their_roles(tmp_path):
    row = FORMATS["conversational"] | {"prompt": [message("user", "Hello"), message("assistant", "Hi"), message("user", "Why?")]}
    import_trl(write(tmp_path / "data.jsonl", [row]), tmp_path / "out")
    assert read_tables(tmp_path / "out")["responses"]["prompt"][0].as_py() == "user: Hello\n\nassistant: Hi\n\nuser: Why?"


def test_shared_texts_are_one_response_and_facts_are_kept(tmp_path):
    rows = [
        PLAIN | {"split": "train", "group": "g", "cohort": "seen"},
        PLAIN | {"user_id": "v", "chosen": "Paint.", "rejected": "Rayleigh.", "split": "test", "cohort": "seen"},
    ]
    words = import_trl(write(tmp_path / "data.jsonl", rows), tmp_path / "out")
    tables = read_tables(tmp_path / "out")
    assert tables["responses"].num_rows == 2
    assert tables["comparisons"]["split"].to_pylist() == ["train", "test"]
    assert tables["users"]["group"].to_pylist() == ["g", None]
    assert "2 comparisons of 2 users on 2 responses" in words
    assert "data split" not in words


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"user_id": "u"', "line 1: It is not JSON"),
        ("[1]", "not an object"),
        (json.dumps(PLAIN | {"user_id": 7}), "got 7"),
        (json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}), "--user-column"),
        (json.dumps({"user_id": "u", "prompt": "p", "chosen": "a"}), "no 'rejected'"),
        (json.dumps(PLAIN | {"chosen": "  "}), "chosen must be a text"),
        (json.dumps(PLAIN | {"chosen": [{"role": "user"}]}), "not {role, content}"),
        (json.dumps({"user_id": "u", "chosen": None, "rejected": "b"}), "must both be texts"),
        (json.dumps({"user_id": "u", "chosen": {"a": 1}, "rejected": {"a": 2}}), "must both be texts"),
        ("\n".join(json.dumps(PLAIN | {"timestamp": when}) for when in (1, "noon")), "'timestamp' is not of one type"),
        ("", "There is no row"),
    ],
)
def test_mistakes_name_the_row(tmp_path, content, said):
    source = tmp_path / "data.jsonl"
    source.write_text(content)
    with pytest.raises(DataError) as raised:
        import_trl(source, tmp_path / "out")
    assert said in str(raised.value)
    assert "data.jsonl" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_half_a_surrogate_pair_is_no_obstacle(tmp_path):
    import_trl(write(tmp_path / "data.jsonl", [PLAIN | {"user_id": "u\ud83d", "chosen": "half \ud83d"}]), tmp_path / "out")
    assert read_tables(tmp_path / "out")["responses"]["response"].to_pylist()[0] == "half ?"


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        import_trl(tmp_path / "nothing.jsonl", tmp_path / "out")
