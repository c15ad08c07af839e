import pytest

from penchant.adapters.tasks.metrics import score
from penchant.config import load_settings
from penchant.data.lamp import TASKS, find_task
from penchant.data.lamp.planted import LampWorld, load_lamp_truth, save_planted_lamp
from penchant.data.lamp.reading import examine_lamp
from penchant.errors import ConfigError, OutputError


def golds_of(data):
    return {query.id: query.gold for user in data.targets.values() for query in user.queries}


@pytest.mark.parametrize("task", TASKS)
def test_without_noise_the_rule_says_it_all(task, planted_folder):
    folder, truth = planted_folder(task=task, noise=0.0)
    data, problems = examine_lamp(folder, find_task(task))
    assert problems == []
    golds = golds_of(data)
    assert truth.best == golds
    reached = score(data.task, [truth.best[query] for query in golds], list(golds.values()))
    assert {name: reached[name] for name in truth.expected} == pytest.approx(truth.expected)
    assert truth.expected


def test_more_texts_than_there_are_end_with_an_error(tmp_path, monkeypatch):
    from penchant.data.lamp import planted_rules

    monkeypatch.setattr(planted_rules, "_PLACES", ("Oslo",))
    monkeypatch.setattr(planted_rules, "_THINGS", ("kettle",))  # times 97 days
    save_planted_lamp(LampWorld(task="7", users=1, other_users=1, items=40, queries=50), tmp_path / "enough")
    with pytest.raises(ConfigError, match="LaMP_7 has no 100 different texts: about 97 are all"):
        save_planted_lamp(LampWorld(task="7", users=1, other_users=1, items=50, queries=50), tmp_path / "much")
    assert not (tmp_path / "much").exists()


@pytest.mark.parametrize("task", TASKS)
def test_with_noise_the_rule_reaches_what_is_expected(task, planted_folder):
    folder, truth = planted_folder(task=task, noise=0.2, users=10, items=1, queries=100, other_users=20)
    data, _ = examine_lamp(folder, find_task(task))
    golds = golds_of(data)
    agree = [truth.best[query] == gold for query, gold in golds.items()]
    # 1,000 answers, each kept with probability 0.8: four standard deviations.
    assert sum(agree) / len(agree) == pytest.approx(0.8, abs=0.051)
    best, common = (
        score(data.task, [answers[query] for query in golds], list(golds.values()))
        for answers in (truth.best, truth.unpersonalised)
    )
    assert {name: best[name] for name in truth.expected} == pytest.approx(truth.expected, abs=0.06)
    # The text alone does not tell: the user has to be known.
    better = {name: common[name] - best[name] if name in ("mae", "rmse") else best[name] - common[name] for name in best}
    assert min(better.values()) > 0.1


def test_the_same_world_gives_the_same_files(tmp_path):
    for name in ("one", "two"):
        save_planted_lamp(LampWorld(users=2, other_users=2, items=3, queries=1, seed=5), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["dev_outputs.json", "dev_questions.json", "train_outputs.json", "train_questions.json", "truth.json"]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_truth_is_read_back(planted_folder):
    folder, truth = planted_folder(task="LaMP_7")
    assert load_lamp_truth(folder) == truth


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        save_planted_lamp(LampWorld(), tmp_path)


def test_a_world_of_an_unknown_task_is_refused():
    with pytest.raises(ConfigError, match="LaMP_9"):
        load_settings(LampWorld, overrides=["task=LaMP_9"])
