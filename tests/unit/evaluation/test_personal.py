import itertools
import json

import numpy as np
import pytest

from penchant.adapters.config import LampSettings
from penchant.adapters.tasks.metrics import score
from penchant.data.lamp import Item, LampData, LampUser, Query, find_task
from penchant.errors import DataError
from penchant.evaluation.personal import AGAINST, UserBootstrap, activity_groups, judge_rows, verdict
from penchant.evaluation.personal_report import headline, write_personal_report
from penchant.evaluation.personal_results import personal_results

RANDOM = np.random.default_rng(0)


def draw(task, users=9, least=1):
    """Users' right answers, and answers of which about half are right."""
    labels = task.labels or ("red green blue", "red blue", "green", "a b c d", "b c")
    golds = {f"u{number}": [str(RANDOM.choice(labels)) for _ in range(least + number % 4)] for number in range(users)}
    said = {user: [gold if RANDOM.random() < 0.5 else str(RANDOM.choice(labels)) for gold in own] for user, own in golds.items()}
    return golds, said


@pytest.mark.parametrize("name", ["1", "2N", "2M", "3", "4"])
def test_a_resample_scores_what_its_users_score(name):
    task = find_task(name)
    golds, said = draw(task)
    bootstrap = UserBootstrap(task, golds, resamples=6, seed=3)
    judged = bootstrap.judge(said)
    for number, count_U in enumerate(bootstrap.draws_BU):
        drawn = [user for user, count in zip(golds, count_U, strict=True) for _ in range(int(count))]
        alone = score(task, [text for user in drawn for text in said[user]], [gold for user in drawn for gold in golds[user]])
        assert alone == pytest.approx({metric: found.drawn[number] for metric, found in judged.items()})
    everybody = score(task, [text for own in said.values() for text in own], [gold for own in golds.values() for gold in own])
    assert everybody == pytest.approx({metric: found.value for metric, found in judged.items()})


def test_differences_are_paired():
    task = find_task("3")
    golds, said = draw(task, users=30)
    better = {user: [*own[:-1], golds[user][-1]] for user, own in said.items()}
    rows = judge_rows(task, golds, {AGAINST: said, "same": said, "better": better})["rows"]
    assert "difference" not in rows[AGAINST]["mae"]
    assert rows["same"]["mae"]["difference"] == {"value": 0, "low": 0, "high": 0}
    gain = rows["better"]["mae"]["difference"]
    assert verdict("mae", gain, users=30) == "better"
    assert gain["high"] - gain["low"] < rows["better"]["mae"]["high"] - rows["better"]["mae"]["low"], "pairing narrows it"


def test_users_without_queries_are_left_out():
    task = find_task("3")
    table = judge_rows(task, {"a": ["1"], "b": []}, {AGAINST: {"a": ["2"], "b": []}})
    assert (table["users"], table["queries"]) == (1, 1)


@pytest.mark.parametrize(
    ("metric", "difference", "said"),
    [
        ("mae", (-0.3, -0.1), "better"),
        ("mae", (0.1, 0.3), "worse"),
        ("accuracy", (0.1, 0.3), "better"),
        ("accuracy", (-0.3, -0.1), "worse"),
        ("rouge_1", (-0.1, 0.3), "no difference shown"),
    ],
)
def test_a_verdict_asks_for_an_interval_without_0(metric, difference, said):
    low, high = difference
    assert verdict(metric, {"value": (low + high) / 2, "low": low, "high": high}, users=5) == said


def test_of_few_users_there_is_no_verdict(reviews, tmp_path):
    few = LampData(reviews.task, {"u1": reviews.targets["u1"]}, {})
    answered = {AGAINST: {"u1": ["3"]}, "oppu": {"u1": ["2"]}}
    results = personal_results(few, answered, LampSettings(), notes=["oppu: 1 of 1 prompts are <long>."])
    assert headline(results) == ["oppu: MAE 0.000, -1.000 [-1.000, -1.000] against the task base: too few users."]
    write_personal_report(tmp_path / "report.html", results)
    page = (tmp_path / "report.html").read_text()
    assert "too few users" in page
    assert "oppu: 1 of 1 prompts are &lt;long&gt;." in page
    assert ": better" not in page


def test_activity_groups_hold_everybody_once_by_length():
    items = {f"u{number}": count for number, count in enumerate([3, 3, 3, 8, 20, 20, 100, 2000])}
    groups = activity_groups(items, 4)
    assert sorted(user for users in groups.values() for user in users) == sorted(items)
    ranges = [[items[user] for user in users] for users in groups.values()]
    assert all(max(low) < min(high) for low, high in itertools.pairwise(ranges))
    assert len(groups) >= 3
    assert next(iter(groups)) == "3 items"
    assert list(activity_groups({"a": 5, "b": 5}, 4)) == ["5 items"]


@pytest.fixture
def reviews():
    task = find_task("3")
    users = {}
    for number in range(8):
        items = tuple(Item(str(at), {"text": f"text {at}", "score": str(1 + number % 5)}) for at in range(4 + number))
        users[f"u{number}"] = LampUser(f"u{number}", items, (Query("q", "", {"text": "new"}, str(1 + number % 5), len(items)),))
    return LampData(task, users, {})


@pytest.mark.parametrize("study", ["evaluation", "activity"])
def test_results_become_a_report_of_one_file(reviews, study, tmp_path):
    own = {name: [query.gold for query in user.queries] for name, user in reviews.targets.items()}
    answered = {AGAINST: {user: ["3"] for user in own}, "oppu": own, "oppu, wrong user": {user: ["5"] for user in own}}
    results = personal_results(reviews, answered, LampSettings(), study=study)
    assert json.loads(json.dumps(results)) == results
    for group in results["groups"].values():
        assert list(group["rows"]) == ["commonest answer", "mean stars", AGAINST, "oppu", "oppu, wrong user"]
        assert group["rows"]["oppu"]["mae"]["value"] == group["rows"]["mean stars"]["mae"]["value"] == 0
    assert len(results["groups"]) == (1 if study == "evaluation" else 4)
    if study == "evaluation":
        assert headline(results)[0].endswith("against the task base: better.")
    path = tmp_path / "report.html"
    write_personal_report(path, results)
    html = path.read_text()
    assert "oppu, wrong user" in html
    assert "figure-personal" in html
    assert 'src="http' not in html


def test_without_queries_there_is_nothing_to_judge(reviews):
    with pytest.raises(DataError, match="have no queries"):
        personal_results(LampData(reviews.task, {"a": LampUser("a", (), ())}, {}), {}, LampSettings())
