import json

import pytest
from ray.tune.search import Searcher

from penchant.config import load_settings
from penchant.runtime.training.config import FitSettings
from penchant.runtime.training.progress import ProgressLog
from penchant.runtime.tuning.candidates import base_settings
from penchant.runtime.tuning.results import refused
from penchant.runtime.tuning.search import CheckedSearch
from penchant.runtime.tuning.space import Space

RANK, TOP = "experts.r", "experts.top_k"


class NoMoreThanRank:
    """A check that needs no base model."""

    def __init__(self, base):
        self.base = base

    def __call__(self, values):
        return "top_k is too high" if values[TOP] * 2 > values[RANK] else None


@pytest.fixture
def make(tmp_path):
    def made(**values):
        parameters = {RANK: {"choice": [2, 4, 8]}, TOP: {"integer": [1, 4]}}
        space = Space.model_validate({"stage": "reward", "parameters": parameters} | values)
        base = base_settings(space, None, [], where="here")
        return CheckedSearch(space, NoMoreThanRank(base), ProgressLog(tmp_path / "journal.jsonl"))

    return made


def drain(search, first=0):
    proposed = []
    for number in range(first, first + 50):
        values = search.suggest(str(number))
        if values == Searcher.FINISHED:
            return proposed
        proposed.append(values)
        search.on_trial_complete(str(number), {"accuracy": values[RANK] / 10})
    raise AssertionError("it never ends")


def test_every_point_that_can_be_is_tried_once_starting_from_the_default(make):
    search = make()
    proposed = drain(search)
    default = load_settings(FitSettings)
    assert proposed[0] == {RANK: default.experts.r, TOP: default.experts.top_k}
    assert sorted(json.dumps(values) for values in proposed) == sorted(
        json.dumps({RANK: rank, TOP: top}) for rank in (2, 4, 8) for top in range(1, 5) if top * 2 <= rank
    )
    assert refused(search.journal.read()) == {"top_k is too high": 12 - len(proposed)}


def test_the_seed_fixes_what_is_proposed(make):
    first, again, other = (drain(make(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_saved_search_goes_on(make, tmp_path):
    search = make()
    started = [search.suggest(str(number)) for number in range(3)]
    search.save(str(tmp_path / "search"))
    again = make()
    again.restore(str(tmp_path / "search"))
    again.on_trial_complete("0", {"accuracy": 0.5})
    rest = drain(again, first=3)
    assert not [values for values in rest if values in started]
    assert len(started) + len(rest) == 7


def test_several_objectives(make):
    search = make(objectives=["accuracy", "parameters"])
    for number in range(5):
        values = search.suggest(str(number))
        search.on_trial_complete(str(number), {"accuracy": 0.5, "parameters": values[RANK]})
    assert [trial.values for trial in search._ot_study.trials if trial.values] != []


def test_where_nothing_can_be_the_search_ends(make, tmp_path, monkeypatch):
    monkeypatch.setattr("penchant.runtime.tuning.search._FEW", 30)
    search = make(parameters={RANK: {"choice": [2]}, TOP: {"choice": [4]}, "experts.dropout": {"uniform": [0.0, 0.5]}})
    assert search.suggest("0") == Searcher.FINISHED
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 30


def test_a_space_of_numbers_does_not_end(make):
    search = make(parameters={RANK: {"choice": [8]}, TOP: {"choice": [1]}, "experts.dropout": {"uniform": [0.0, 0.5]}})
    proposed = [search.suggest(str(number))["experts.dropout"] for number in range(20)]
    assert len(set(proposed)) == 20
    assert proposed[0] == 0.0
