import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penchant.artifacts import Manifest
from penchant.errors import ArtifactError, ConfigError, DataError, OutputError
from penchant.runtime.batch.config import BatchSettings
from penchant.runtime.batch.onboarding import _bucket, onboard_table
from penchant.runtime.batch.scoring import score_tables
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.onboarded import read_choices, read_onboarded

SMALL = BatchSettings(rows_per_part=4)


def rows(planted, count, start=0):
    """Rows of seen users and a stranger, over few texts."""
    dataset, _ = planted
    users = [*dataset.user_ids[:5], "nobody"]
    numbers = range(start, start + count)
    return pa.table(
        {
            "id": pa.array(numbers),
            "user_id": pa.array([str(users[number % 6]) for number in numbers]).dictionary_encode(),
            "prompt": [dataset.prompts[dataset.prompt_of_response[number % 9]] for number in numbers],
            "response": [dataset.responses[number % 9] for number in numbers],
        }
    )


@pytest.fixture
def data(planted, tmp_path):
    folder = tmp_path / "rows"
    (folder / "more").mkdir(parents=True)
    pq.write_table(rows(planted, 11), folder / "a.parquet", row_group_size=3)
    pq.write_table(rows(planted, 3, start=11), folder / "more" / "b.parquet")
    pq.write_table(rows(planted, 0), folder / "empty.parquet")
    return folder


def test_every_row_is_scored_as_the_model_scores_it(data, bundle, tmp_path, in_process):
    folder, _, _ = bundle
    done = score_tables(str(data), str(folder), str(tmp_path / "out"), settings=SMALL)
    assert (done.rows, done.files, done.skipped_files) == (14, 3, 0)
    assert in_process.parts == 4
    model = PersonalisedRewardModel.load(folder)
    scored = pq.read_table(tmp_path / "out" / "a.parquet")
    assert scored.column_names == ["id", "user_id", "prompt", "response", "score", "uniform", "personalisation", "bundle"]
    assert scored["id"].to_pylist() == list(range(11))
    for row in scored.to_pylist():
        alone = model.score(row["user_id"], row["prompt"], [row["response"]])
        assert row["score"] == pytest.approx(alone.score[0], abs=5e-3)
        assert row["uniform"] == pytest.approx(alone.uniform[0], abs=5e-3)
        assert (row["personalisation"], row["bundle"]) == (alone.personalisation, model.manifest.name)
    assert {"seen", "unknown"} == set(scored["personalisation"].to_pylist())
    assert pq.read_table(tmp_path / "out" / "more" / "b.parquet").num_rows == 3
    assert pq.read_table(tmp_path / "out" / "empty.parquet").column_names == scored.column_names
    assert not (tmp_path / "out" / ".parts").exists()


def test_what_is_done_is_not_done_again(data, bundle, tmp_path, in_process, planted):
    arguments = (str(data), str(bundle[0]), str(tmp_path / "out"))
    in_process.limit = 2
    with pytest.raises(KeyboardInterrupt):
        score_tables(*arguments, settings=SMALL)
    assert not (tmp_path / "out" / "a.parquet").exists()
    in_process.limit = None
    score_tables(*arguments, settings=SMALL)
    assert in_process.parts == 4, "the two parts that were there are taken over"
    again = score_tables(*arguments, settings=SMALL)
    assert (again.rows, again.files, again.skipped_files) == (0, 0, 3)
    assert in_process.workers == 2, "no model is loaded for nothing"
    pq.write_table(rows(planted, 5, start=1), data / "a.parquet")
    changed = score_tables(*arguments, settings=SMALL)
    assert (changed.rows, changed.files, changed.skipped_files) == (5, 1, 2)
    assert pq.read_table(tmp_path / "out" / "a.parquet")["id"].to_pylist() == [1, 2, 3, 4, 5]


def test_another_bundle_or_other_onboarded_users_make_other_scores(data, bundle, tmp_path, in_process):
    out, users = tmp_path / "out", tmp_path / "users"
    other = tmp_path / "bundle"
    shutil.copytree(bundle[0], other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"name": "another"}))
    score_tables(str(data), str(bundle[0]), str(out))
    assert score_tables(str(data), str(other), str(out)).files == 3
    choices = tmp_path / "choices.jsonl"
    choices.write_text(json.dumps({"user_id": "nobody", "prompt": "Why?", "chosen": "Ha! A joke.", "rejected": "So."}) + "\n")
    onboard_table(str(choices), str(other), str(users))
    done = score_tables(str(data), str(other), str(out), onboarded=str(users))
    assert done.files == 3
    scored = pq.read_table(out / "a.parquet").to_pylist()
    known = [row for row in scored if row["user_id"] == "nobody"]
    assert {row["personalisation"] for row in known} == {"onboarded"}
    assert all(row["score"] != row["uniform"] for row in known)
    with pytest.raises(ArtifactError, match="onboarded under bundle 'another'"):
        score_tables(str(data), str(bundle[0]), str(out), onboarded=str(users))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop_columns(["response"]), "There is no column 'response'"),
        (lambda table: table.set_column(1, "user_id", [list(range(11))]), "'user_id' holds int64, not text"),
        (lambda table: table.set_column(3, "response", [["a"] * 9 + [None, "b"]]), "row 9: response is missing"),
        (lambda table: table.set_column(2, "prompt", [["a"] * 10 + [" \n"]]), "row 10: prompt is blank"),
        (lambda table: table.append_column("score", [[0.0] * 11]), "column 'score' already"),
    ],
)
def test_bad_input_is_told_before_a_model_is_loaded(data, bundle, planted, tmp_path, in_process, change, said):
    pq.write_table(change(rows(planted, 11)), data / "bad.parquet", row_group_size=4)
    with pytest.raises(DataError, match=said) as error:
        score_tables(str(data), str(bundle[0]), str(tmp_path / "out"))
    assert "bad.parquet" in str(error.value)
    assert in_process.workers == 0


def test_other_mistakes(data, bundle, tmp_path, in_process):
    (data / "text.parquet").write_text("no Parquet")
    with pytest.raises(DataError, match=r"text\.parquet: It cannot be read"):
        score_tables(str(data), str(bundle[0]), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="among the inputs"):
        score_tables(str(data), str(bundle[0]), str(data / "out"))
    with pytest.raises(ArtifactError, match="not a bundle"):
        score_tables(str(data), str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(ArtifactError, match="no onboarded users"):
        score_tables(str(data), str(bundle[0]), str(tmp_path / "out"), onboarded=str(tmp_path))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told(data, bundle, tmp_path, in_process, monkeypatch):
    from penchant.storage import locations

    def full(self, path, *args, **kwargs):
        return pa.OSFile("/dev/full", "wb")

    class Full(locations.LocalFileSystem):
        open_output_stream = full

    monkeypatch.setattr(locations, "LocalFileSystem", Full)
    with pytest.raises(OutputError, match="disk is full"):
        score_tables(str(data), str(bundle[0]), str(tmp_path / "out"))


def test_many_users_are_onboarded_as_one_by_one(planted, bundle, tmp_path, in_process):
    dataset, _ = planted
    random = np.random.default_rng(0)
    folder = tmp_path / "choices"
    folder.mkdir()
    lines, responses = [], sorted(set(dataset.responses[:16]))
    for number in range(60):
        chosen, rejected = random.choice(responses, 2, replace=False)
        texts = {"chosen": str(chosen), "rejected": str(rejected)}
        lines.append({"user_id": f"new-{number % 13}", "prompt": dataset.prompts[0]} | texts)
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:25]))
    pq.write_table(pa.Table.from_pylist(lines[25:]), folder / "b.parquet")
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = (str(folder), str(bundle[0]), str(tmp_path / "out"))
    done = onboard_table(*arguments, settings=BatchSettings(rows_per_part=20))
    assert (done.users, done.files, done.skipped_files) == (13, 3, 0)
    model = PersonalisedRewardModel.load(bundle[0])
    found = read_onboarded(tmp_path / "out", bundle=model.manifest.name)
    expected = model.embed_choices(read_choices(tmp_path / "all.jsonl"))
    assert found.keys() == expected.keys()
    for user, embedding in expected.items():
        assert found[user].numpy() == pytest.approx(embedding.numpy(), abs=5e-3)
    workers = in_process.workers
    assert onboard_table(*arguments, settings=BatchSettings(rows_per_part=20)).skipped_files == 3
    assert in_process.workers == workers
    foreign = [
        tmp_path / "out" / name for name in ("users-2024.parquet", "users-eu/part.parquet", "users-00009-of-00010.parquet")
    ]
    for file in foreign:
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"a": [1]}), file)
    assert onboard_table(*arguments, settings=BatchSettings(rows_per_part=40)).files == 2
    left = set((tmp_path / "out").rglob("*.parquet")) - set(foreign)
    assert len(left) == 2, "users of the earlier division are gone"
    assert all(file.is_file() for file in foreign), "what the job did not write stays"


def test_a_user_who_is_no_longer_in_the_input_is_no_longer_in_the_results(bundle, tmp_path, in_process):
    choices, out = tmp_path / "choices.jsonl", tmp_path / "out"
    other = tmp_path / "bundle"
    shutil.copytree(bundle[0], other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"name": "another"}))
    line = {"prompt": "Why?", "chosen": "Ha! A joke.", "rejected": "So."}
    settings = BatchSettings(rows_per_part=4)  # eight choices: two buckets, before and after

    def onboard(users, bundle):
        choices.write_text("".join(json.dumps({"user_id": user} | line) + "\n" for user in users))
        onboard_table(str(choices), str(bundle), str(out), settings=settings)
        return set(read_onboarded(out, bundle=Manifest.read(bundle).name))

    first, second = (next(str(n) for n in range(99) if _bucket(pa.chunked_array([[str(n)]]), 2) == number) for number in (0, 1))
    assert onboard([first, second] * 4, bundle[0]) == {first, second}
    assert onboard([first] * 8, bundle[0]) == {first}, "nobody falls into the other bucket any more"
    assert onboard([first, second] * 4, bundle[0]) == {first, second}
    assert onboard([second] * 8, other) == {second}, "what is left of another bundle would have the whole folder refused"


def test_a_bad_choice_is_told_with_its_row(bundle, tmp_path, in_process):
    choices = tmp_path / "choices.jsonl"
    good = {"user_id": "u", "prompt": "p", "chosen": "a", "rejected": "b"}
    for change, said in (
        ({"chosen": " "}, "row 1: chosen is blank"),
        ({"chosen": "b"}, "row 1: chosen and rejected are the same"),
    ):
        choices.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
        with pytest.raises(DataError, match=said):
            onboard_table(str(choices), str(bundle[0]), str(tmp_path / "out"))
    choices.write_text("\n")
    with pytest.raises(DataError, match="no comparison"):
        onboard_table(str(choices), str(bundle[0]), str(tmp_path / "out"))
    assert in_process.workers == 0
