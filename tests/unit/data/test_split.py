import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from penchant.data import PreferenceDataset
from penchant.data.split import hold_out_valid, split_dataset
from penchant.errors import ConfigError, DataError, OutputError


@pytest.fixture
def unsplit(planted, tmp_path):
    folder = tmp_path / "unsplit"
    folder.mkdir()
    tables = planted[0].tables()
    pq.write_table(tables["responses"], folder / "responses.parquet")
    pq.write_table(tables["comparisons"].drop_columns(["split"]), folder / "comparisons.parquet")
    return folder


def test_split_by_prompt_and_by_user(unsplit, tmp_path):
    dataset = split_dataset(unsplit, tmp_path / "out", test_prompts=0.25, valid=0.2, unseen=0.2, seed=1)
    prompt = dataset.prompt_of_response[dataset.comparisons.chosen]
    test = dataset.comparisons.split == 2
    assert not set(prompt[test]) & set(prompt[~test])
    assert len(set(prompt[test])) == round(0.25 * len(dataset.prompt_ids))
    assert 0 < (~dataset.seen).sum() < len(dataset.seen) / 2
    trained = np.unique(dataset.select(split="train").user)
    others = np.unique(dataset.comparisons.user[~test])
    assert np.array_equal(trained, others), "everybody with a comparison outside test has one in train"
    assert PreferenceDataset.load(tmp_path / "out").fingerprint == dataset.fingerprint


def test_one_text_under_two_ids_goes_to_test_whole(unsplit, tmp_path):
    tables = {name: pq.read_table(unsplit / f"{name}.parquet") for name in ("responses", "comparisons")}
    prompts = tables["responses"]["prompt"].to_pylist()
    alike = sorted(set(prompts))[::2]
    texts = ["The same." if prompt in alike else prompt for prompt in prompts]
    at = tables["responses"].column_names.index("prompt")
    pq.write_table(tables["responses"].set_column(at, "prompt", [texts]), unsplit / "responses.parquet")
    dataset = split_dataset(unsplit, tmp_path / "out", test_prompts=0.25, seed=1)
    text = np.array(dataset.prompts, dtype=object)[dataset.prompt_of_response[dataset.comparisons.chosen]]
    test = dataset.comparisons.split == 2
    assert test.any()
    assert not set(text[test]) & set(text[~test])


def test_conversations_go_to_test_whole(unsplit, tmp_path):
    table = pq.read_table(unsplit / "comparisons.parquet")
    prompts = sorted(set(table["prompt_id"].to_pylist()))
    # Two turns each: the second prompt is the conversation's own, the first may be several conversations'.
    talk = {prompt: f"talk {prompts.index(prompt) // 2}" for prompt in prompts}
    names = [None if prompt == prompts[-1] else talk[prompt] for prompt in table["prompt_id"].to_pylist()]
    pq.write_table(table.append_column("conversation_id", [names]), unsplit / "comparisons.parquet")
    split_dataset(unsplit, tmp_path / "out", test_prompts=0.25, seed=1)
    found = pq.read_table(tmp_path / "out" / "comparisons.parquet")
    splits = {}
    for name, split in zip(found["conversation_id"].to_pylist(), found["split"].to_pylist(), strict=True):
        splits.setdefault(name, set()).add(split == "test")
    splits.pop(None)
    assert set(map(len, splits.values())) == {1}
    assert {True, False} == set.union(*splits.values())


def test_ids_that_are_numbers_are_told(unsplit, tmp_path):
    table = pq.read_table(unsplit / "comparisons.parquet")
    at = table.column_names.index("user_id")
    pq.write_table(table.set_column(at, "user_id", [list(range(table.num_rows))]), unsplit / "comparisons.parquet")
    with pytest.raises(DataError, match=r"'user_id' must be a string \(got int64\)"):
        split_dataset(unsplit, tmp_path / "out")


def test_where_everybody_has_few_choices_some_are_valid_all_the_same():
    user = np.arange(60).repeat(4)
    split = np.full(len(user), "train", dtype=object)
    hold_out_valid(split, user, 0.1, np.random.default_rng(0))
    assert 0 < (split == "valid").sum() < 60
    assert np.bincount(user[split == "valid"]).max() == 1


@pytest.mark.parametrize(("prompts", "share", "held_out"), [(4, 0.1, 1), (2, 0.9, 1), (4, 0.0, 0), (1, 0.1, 0)])
def test_of_few_prompts_one_is_held_out(unsplit, tmp_path, prompts, share, held_out):
    tables = {name: pq.read_table(unsplit / f"{name}.parquet") for name in ("responses", "comparisons")}
    few = pa.array(sorted(set(tables["comparisons"]["prompt_id"].to_pylist()))[:prompts])
    for name, table in tables.items():
        pq.write_table(table.filter(pc.is_in(table["prompt_id"], value_set=few)), unsplit / f"{name}.parquet")
    dataset = split_dataset(unsplit, tmp_path / "out", test_prompts=share)
    assert len(set(dataset.prompt_of_response[dataset.select(split="test").chosen])) == held_out
    assert len(dataset.select(split="train"))


def test_split_is_seeded(unsplit, tmp_path):
    first, again, other = (split_dataset(unsplit, tmp_path / f"{n}", seed=seed) for n, seed in enumerate((1, 1, 2)))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_split_that_is_there_is_kept(planted, tmp_path):
    planted[0].save(tmp_path / "whole")
    assert split_dataset(tmp_path / "whole", tmp_path / "out").fingerprint == planted[0].fingerprint


def test_mistakes(unsplit, tmp_path):
    with pytest.raises(ConfigError, match=r"valid is 1\.5"):
        split_dataset(unsplit, tmp_path / "out", valid=1.5)
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "file").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        split_dataset(unsplit, tmp_path / "occupied")
    table = pq.read_table(unsplit / "comparisons.parquet").drop_columns(["prompt_id"])
    pq.write_table(table, unsplit / "comparisons.parquet")
    with pytest.raises(DataError, match="prompt_id"):
        split_dataset(unsplit, tmp_path / "out")
