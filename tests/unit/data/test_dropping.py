import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penchant.data import PreferenceDataset
from penchant.data.dropping import drop_users
from penchant.errors import DataError, OutputError


def test_they_leave_with_their_comparisons(planted, tmp_path):
    dataset, _ = planted
    dataset.save(tmp_path / "data")
    leaving = {dataset.user_ids[0], dataset.user_ids[65]}
    said = drop_users(tmp_path / "data", tmp_path / "out", sorted(leaving))
    left = PreferenceDataset.load(tmp_path / "out")
    assert left.user_ids.tolist() == [user for user in dataset.user_ids if user not in leaving]
    gone = sum(dataset.user_ids[user] in leaving for user in dataset.comparisons.user)
    assert len(left.comparisons) == len(dataset.comparisons) - gone
    assert said.startswith(f"Without 2 users, their {gone} comparisons")
    for name in ("responses", "comparisons", "users"):
        assert left.tables()[name].schema == dataset.tables()[name].schema, "every column is kept"


def test_texts_that_only_they_were_shown_leave_too(unsplit):
    """And without splits and cohorts: as `penchant data export` leaves it."""
    said = drop_users(unsplit, unsplit.parent / "out", ["ana"])
    assert "their 2 comparisons and the 1 responses that only they were shown: 1 comparisons of 2 users" in said
    ids = pq.read_table(unsplit.parent / "out" / "responses.parquet")["response_id"].to_pylist()
    assert ids == ["shared-1", "shared-2", "nobody's"], "what nobody was shown was not theirs"
    assert pq.read_table(unsplit.parent / "out" / "users.parquet")["user_id"].to_pylist() == ["bob", "idle"]


@pytest.mark.parametrize(
    ("users", "out", "error", "said"),
    [
        (["ana", "nobody"], "out", DataError, "'nobody'"),
        (["ana", "bob"], "out", DataError, "No comparison would be left"),
        (["ana"], "data", OutputError, "not empty"),
    ],
)
def test_refused(unsplit, users, out, error, said):
    with pytest.raises(error) as raised:
        drop_users(unsplit, unsplit.parent / out, users)
    assert said in str(raised.value)
    assert not (unsplit.parent / "out").exists()


def test_a_missing_column_is_told(unsplit):
    pq.write_table(pa.table({"user": ["ana"]}), unsplit / "users.parquet")
    with pytest.raises(DataError, match="no column 'user_id'"):
        drop_users(unsplit, unsplit.parent / "out", ["ana"])


@pytest.fixture
def unsplit(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    ids = ["shared-1", "hers", "shared-2", "nobody's"]
    tables = {
        "responses": {"response_id": ids, "prompt_id": ["p"] * 4, "prompt": ["P"] * 4, "response": ["a", "b", "c", "d"]},
        "comparisons": {
            "user_id": ["ana", "bob", "ana"],
            "prompt_id": ["p"] * 3,
            "chosen_id": ["shared-1", "shared-1", "hers"],
            "rejected_id": ["hers", "shared-2", "shared-2"],
        },
        "users": {"user_id": ["ana", "bob", "idle"]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder
