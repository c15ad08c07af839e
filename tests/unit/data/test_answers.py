import numpy as np
import pytest

from penchant.data import PreferenceDataset
from penchant.data.answers import read_answers
from penchant.data.planted import PlantedWorld, save_planted

SMALL = {"users": 60, "unseen_users": 12, "prompts": 40, "comparisons_per_user": 12, "seed": 3}


@pytest.fixture
def world(tmp_path):
    """A world without errors: its folder and its data set."""
    dataset, _ = save_planted(PlantedWorld(**SMALL, noise=0.0), tmp_path / "world")
    return tmp_path / "world", dataset


def test_answers_are_those_of_the_users_own_comparisons(world):
    folder, dataset = world
    rows, answers = dataset.comparisons, read_answers(*world)
    random = np.random.default_rng(0)
    assert answers.chooses_first(rows.user, rows.chosen, rows.rejected, random).all()
    assert not answers.chooses_first(rows.user, rows.rejected, rows.chosen, random).any()
    turned = PreferenceDataset.from_tables(
        **dataset.tables() | {"users": dataset.tables()["users"].take(np.arange(72)[::-1].copy())}
    )
    rows = turned.comparisons
    answers = read_answers(folder, turned)
    assert answers.chooses_first(rows.user, rows.chosen, rows.rejected, random).all(), "users are found by id, in any order"


def test_users_err_as_often_as_the_world_says(tmp_path):
    dataset, _ = save_planted(PlantedWorld(**SMALL, noise=0.2), tmp_path / "world")
    answers, random = read_answers(tmp_path / "world", dataset), np.random.default_rng(1)
    same = np.zeros(20_000, dtype=np.int64)
    said = answers.chooses_first(same, same, same + 1, random)
    assert min(said.mean(), 1 - said.mean()) == pytest.approx(0.2, abs=0.012)


def test_nobody_answers_for_real_users(world, tmp_path):
    _, dataset = world
    dataset.save(tmp_path / "plain")
    assert read_answers(tmp_path / "plain", dataset) is None


@pytest.mark.parametrize(
    "text", ["[]", "{}", "not json", '{"world": {"users": "many"}}', '{"world": {"seed": 4, "prompts": 40}}']
)
def test_nobody_answers_by_a_file_that_tells_of_something_else(world, text):
    folder, dataset = world
    (folder / "truth.json").write_text(text)
    assert read_answers(folder, dataset) is None


def test_nobody_answers_where_groups_are_not_known(world):
    folder, dataset = world
    tables = dataset.tables()
    assert read_answers(folder, PreferenceDataset.from_tables(**tables)) is not None
    tables["users"] = tables["users"].drop_columns(["group"])
    assert read_answers(folder, PreferenceDataset.from_tables(**tables)) is None
