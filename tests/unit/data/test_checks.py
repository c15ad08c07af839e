"""Every case of the data contract: the error names file, row and value, and says what to do."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penchant.data import PreferenceDataset
from penchant.data.dataset import drop_repeats, find_problems, read_tables
from penchant.data.summary import summarise
from penchant.errors import DataError


def good_tables():
    return {
        "responses": pa.table(
            {
                "response_id": ["a", "b", "c", "d"],
                "prompt_id": ["p", "p", "q", "q"],
                "prompt": ["Why?", "Why?", "How?", "How?"],
                "response": ["One.", "Two.", "Three.", "Four."],
            }
        ),
        "comparisons": pa.table(
            {
                "user_id": ["u", "v", "u"],
                "prompt_id": ["p", "p", "q"],
                "chosen_id": ["a", "b", "c"],
                "rejected_id": ["b", "a", "d"],
                "split": ["train", "train", "test"],
            }
        ),
        "users": pa.table({"user_id": ["u", "v"], "cohort": ["seen", "seen"]}),
    }


def with_value(table, column, row, value):
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(column), column, pa.array(values))


CASES = {
    # name: (table, how it is broken, kind, row, value that is quoted)
    "missing column": ("comparisons", lambda t: t.drop_columns(["chosen_id"]), "missing_column", None, None),
    "missing split": ("comparisons", lambda t: t.drop_columns(["split"]), "missing_column", None, None),
    "wrong type": ("users", lambda t: t.set_column(0, "user_id", pa.array([1, 2])), "wrong_type", None, "int64"),
    "wrong optional type": (
        "comparisons", lambda t: t.append_column("controversial", pa.array(["x"] * 3)), "wrong_type", None, "string",
    ),
    "null controversial": (
        "comparisons", lambda t: t.append_column("controversial", pa.array([True, None, False])), "unknown_kind", 1, None,
    ),
    "leaking conversation": (
        "comparisons", lambda t: t.append_column("conversation_id", pa.array(["k", None, "k"])), "leaking_conversation", 2, "k",
    ),
    "unknown response": ("comparisons", lambda t: with_value(t, "chosen_id", 1, "zz"), "unknown_response", 1, "zz"),
    "unknown user": ("comparisons", lambda t: with_value(t, "user_id", 2, "w"), "unknown_user", 2, "w"),
    "chosen is rejected": ("comparisons", lambda t: with_value(t, "chosen_id", 1, "a"), "chosen_is_rejected", 1, "a"),
    "two prompts": ("comparisons", lambda t: with_value(t, "rejected_id", 0, "c"), "two_prompts", 0, "p and q"),
    "other prompt": ("comparisons", lambda t: with_value(t, "prompt_id", 0, "q"), "other_prompt", 0, "q"),
    "null text": ("responses", lambda t: with_value(t, "response", 2, None), "blank", 2, None),
    "blank text": ("responses", lambda t: with_value(t, "response", 2, " \n"), "blank", 2, None),
    "null id": ("comparisons", lambda t: with_value(t, "user_id", 0, None), "blank", 0, None),
    "empty table": ("comparisons", lambda t: t.slice(0, 0), "empty_table", None, None),
    "leaking prompt": ("comparisons", lambda t: with_value(t, "split", 1, "test"), "leaking_prompt", 1, "p"),
    "unknown split": ("comparisons", lambda t: with_value(t, "split", 2, "dev"), "unknown_split", 2, "dev"),
    "unknown cohort": ("users", lambda t: with_value(t, "cohort", 1, "old"), "unknown_cohort", 1, "old"),
    "response twice": ("responses", lambda t: with_value(t, "response_id", 1, "a"), "duplicate_id", 1, "a"),
    "user twice": ("users", lambda t: with_value(t, "user_id", 1, "u"), "duplicate_id", 1, "u"),
    "prompt with two texts": ("responses", lambda t: with_value(t, "prompt", 3, "What?"), "prompt_text", 3, "q"),
}  # fmt: skip


def test_good_tables_have_no_problem():
    assert find_problems(good_tables()) == []
    assert "2 seen and 0 unseen users, 4 responses to 2 prompts" in repr(PreferenceDataset.from_tables(**good_tables()))


@pytest.mark.parametrize("name", CASES)
def test_what_breaks_the_contract_is_told(name):
    table, spoil, kind, row, value = CASES[name]
    tables = good_tables()
    tables[table] = spoil(tables[table])
    problems = [problem for problem in find_problems(tables) if problem.severity == "error"]
    found = [problem for problem in problems if problem.kind == kind]
    assert found, problems
    assert (found[0].file, found[0].row, found[0].value) == (table, row, value)
    with pytest.raises(DataError) as raised:
        PreferenceDataset.from_tables(**tables, where="folder")
    assert table in str(raised.value)
    assert found[0].fix in str(raised.value)


def test_user_without_a_train_comparison_is_a_warning():
    tables = good_tables()
    tables["users"] = pa.table({"user_id": ["u", "v", "w"], "cohort": ["seen"] * 3})
    dataset = PreferenceDataset.from_tables(**tables)
    (warning,) = dataset.warnings
    assert (warning.kind, warning.row, warning.value) == ("silent_user", 2, "w")


def test_a_test_prompts_text_under_another_id_is_a_warning():
    tables = good_tables()
    for row in (2, 3):
        tables["responses"] = with_value(tables["responses"], "prompt", row, "Why?")
    (problem,) = find_problems(tables)
    assert (problem.kind, problem.row, problem.severity) == ("leaking_text", 2, "warning")
    PreferenceDataset.from_tables(**tables)


def test_pair_chosen_both_ways_keeps_the_latest():
    tables = good_tables()
    again = pa.table(
        {"user_id": ["u"], "prompt_id": ["p"], "chosen_id": ["b"], "rejected_id": ["a"], "split": ["train"]}
    )  # fmt: skip
    tables["comparisons"] = pa.concat_tables([tables["comparisons"], again])
    dataset = PreferenceDataset.from_tables(**tables)
    (warning,) = dataset.warnings
    assert warning.kind == "both_ways"
    assert "row 3" in str(warning)
    mine = dataset.comparisons.take(dataset.comparisons.user == 0)
    kept = {(str(dataset.response_ids[c]), str(dataset.response_ids[r])) for c, r in zip(mine.chosen, mine.rejected, strict=True)}
    assert kept == {("b", "a"), ("c", "d")}


def test_latest_is_by_timestamp_where_there_is_one():
    tables = good_tables()
    again = pa.table(
        {"user_id": ["u"], "prompt_id": ["p"], "chosen_id": ["b"], "rejected_id": ["a"], "split": ["train"]}
    )  # fmt: skip
    comparisons = pa.concat_tables([tables["comparisons"], again])
    tables["comparisons"] = comparisons.append_column("timestamp", pa.array([9, 1, 1, 2]))
    dataset = PreferenceDataset.from_tables(**tables)
    assert len(dataset.comparisons) == 3
    assert (0, 0) in set(zip(dataset.comparisons.user, dataset.comparisons.chosen, strict=True))


def test_who_is_left_without_a_train_comparison_by_a_repeat_is_told():
    tables = good_tables()
    tables["users"] = pa.table({"user_id": ["u", "v", "w"], "cohort": ["seen"] * 3})
    again = pa.table(
        {"user_id": ["w"] * 2, "prompt_id": ["p"] * 2, "chosen_id": ["a"] * 2, "rejected_id": ["b"] * 2,
         "split": ["train", "valid"]}
    )  # fmt: skip
    tables["comparisons"] = pa.concat_tables([tables["comparisons"], again])
    dataset = PreferenceDataset.from_tables(**tables)
    assert [(warning.kind, warning.value) for warning in dataset.warnings] == [("silent_user", "w"), ("repeated", "w")]
    assert len(dataset.select(split="valid").take(dataset.select(split="valid").user == 2)) == 1


def test_many_problems_of_a_kind_are_counted_not_listed():
    tables = good_tables()
    many = pa.concat_tables([tables["comparisons"].slice(0, 1)] * 50)
    tables["comparisons"] = pa.concat_tables([tables["comparisons"], with_value(many, "chosen_id", 0, "zz")])
    tables["comparisons"] = tables["comparisons"].set_column(2, "chosen_id", pa.array(["a", "b", "c"] + ["zz"] * 50))
    problems = [problem for problem in find_problems(tables) if problem.kind == "unknown_response"]
    assert len(problems) == 20
    assert sum(problem.count for problem in problems) == 50
    with pytest.raises(DataError, match="50 problems"):
        PreferenceDataset.from_tables(**tables)


def test_folder_that_is_empty_or_not_there(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        PreferenceDataset.load(tmp_path / "nothing")
    with pytest.raises(DataError, match="The folder holds: nothing"):
        PreferenceDataset.load(tmp_path)


def test_parquet_file_cut_short(tmp_path):
    for name, table in good_tables().items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    path = tmp_path / "comparisons.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"comparisons\.parquet: It cannot be read as Parquet"):
        PreferenceDataset.load(tmp_path)


def test_partitioned_directory_is_read_like_a_file(tmp_path):
    tables = good_tables()
    for name, table in tables.items():
        folder = tmp_path / name
        folder.mkdir()
        for row in range(table.num_rows):
            pq.write_table(table.slice(row, 1), folder / f"part-{row}.parquet")
    read = read_tables(tmp_path)
    assert {name: table.num_rows for name, table in read.items()} == {"responses": 4, "comparisons": 3, "users": 2}
    assert PreferenceDataset.load(tmp_path).fingerprint == PreferenceDataset.from_tables(**tables).fingerprint


def test_other_columns_are_kept(tmp_path):
    tables = good_tables()
    tables["responses"] = tables["responses"].append_column("model", pa.array(["m1", "m2", "m1", "m2"]))
    PreferenceDataset.from_tables(**tables).save(tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "responses.parquet")["model"].to_pylist() == ["m1", "m2", "m1", "m2"]


@st.composite
def choices(draw):
    """Choices of a few users among four responses to one prompt."""
    rows = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
    return [(user, chosen, rejected) for user, chosen, rejected in rows if chosen != rejected] or [(0, 0, 1)]


def table_of(rows):
    return pa.table(
        {
            "user_id": [f"u{user}" for user, _, _ in rows],
            "prompt_id": ["p"] * len(rows),
            "chosen_id": [f"r{chosen}" for _, chosen, _ in rows],
            "rejected_id": [f"r{rejected}" for _, _, rejected in rows],
            "split": ["train"] * len(rows),
        }
    )


@given(choices())
@settings(deadline=None)
def test_each_user_keeps_one_choice_of_a_pair_and_it_is_the_last(rows):
    kept, problems = drop_repeats(table_of(rows))
    expected = {(user, frozenset((chosen, rejected))): chosen for user, chosen, rejected in rows}
    found = {
        (int(row["user_id"][1:]), frozenset((int(row["chosen_id"][1:]), int(row["rejected_id"][1:])))): int(row["chosen_id"][1:])
        for row in kept.to_pylist()
    }
    assert found == expected
    assert kept.num_rows == len(expected)
    assert sum(problem.count for problem in problems) == len(rows) - len(expected)


TEXT = st.text(max_size=4)


@given(
    data=st.data(),
    columns=st.sampled_from(["user_id", "prompt_id", "chosen_id", "rejected_id", "split"]),
)
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_value_is_either_used_or_told_about(data, columns):
    """Whatever stands in a column, loading gives a data set whose every code is in range, or a DataError; never another error."""
    tables = good_tables()
    row = data.draw(st.integers(0, 2))
    value = data.draw(st.one_of(TEXT, st.none(), st.sampled_from(["a", "b", "c", "d", "p", "q", "train", "test"])))
    tables["comparisons"] = with_value(tables["comparisons"], columns, row, value)
    try:
        dataset = PreferenceDataset.from_tables(**tables)
    except DataError as error:
        assert "comparisons" in str(error)
        return
    for codes, size in (
        (dataset.comparisons.user, len(dataset.user_ids)),
        (dataset.comparisons.chosen, len(dataset.response_ids)),
        (dataset.comparisons.rejected, len(dataset.response_ids)),
    ):
        assert codes.min() >= 0
        assert codes.max() < size
    prompt = dataset.prompt_of_response
    assert (prompt[dataset.comparisons.chosen] == prompt[dataset.comparisons.rejected]).all()
    assert (dataset.comparisons.chosen != dataset.comparisons.rejected).all()


def test_split_and_cohort_select_rows(planted):
    dataset, _ = planted
    total = sum(
        len(dataset.select(split=split, cohort=cohort)) for split in ("train", "valid", "test") for cohort in ("seen", "unseen")
    )
    assert total == len(dataset.comparisons)
    assert not dataset.seen[dataset.select(cohort="unseen").user].any()
    assert np.isin(dataset.select(split=("train", "valid")).split, [0, 1]).all()


def test_texts_under_several_ids_are_counted():
    tables = good_tables()
    assert summarise(PreferenceDataset.from_tables(**tables)).repeated_texts == 0
    tables["responses"] = with_value(tables["responses"], "response", 2, "One.")
    assert summarise(PreferenceDataset.from_tables(**tables)).repeated_texts == 0, "an answer to another prompt"
    for row, text in ((1, "One."), (3, "One.")):
        tables["responses"] = with_value(tables["responses"], "response", row, text)
    dataset = PreferenceDataset.from_tables(**tables)
    assert summarise(dataset).repeated_texts == 2
    assert not dataset.warnings
