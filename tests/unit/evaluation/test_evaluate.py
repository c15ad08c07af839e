import numpy as np
import pyarrow as pa
import pytest
import torch

from penchant.evaluation.evaluate import Evaluator
from penchant.evaluation.metrics import Bootstrap, accuracy_table, calibration_table, onboarding_points, paired_differences
from penchant.evaluation.report import MapPoints, headline, write_report
from penchant.scoring.model import PersonalisedRewardModel


@pytest.fixture
def evaluator(bundle, planted):
    folder, _, features = bundle
    return Evaluator(PersonalisedRewardModel.load(folder), planted[0], features)


def test_margins_are_the_models_own_scores(evaluator, planted, bundle):
    dataset = planted[0]
    judged = evaluator.judge(evaluator.users())
    model = evaluator.model
    for row in np.flatnonzero(judged.seen)[:5]:
        test = evaluator.test
        texts = [dataset.responses[test.chosen[row]], dataset.responses[test.rejected[row]]]
        answer = model.score(dataset.user_ids[test.user[row]], dataset.prompts[judged.prompt[row]], texts)
        assert judged.margins["personalised"][row] == pytest.approx(answer.score[0] - answer.score[1], abs=5e-3)
        assert judged.margins["uniform"][row] == pytest.approx(answer.uniform[0] - answer.uniform[1], abs=5e-3)


def test_wrong_user_is_of_another_group(evaluator, planted):
    group = planted[0].group
    wrong = evaluator._wrong_users(evaluator.users())
    assert (group[wrong] != group).all()


def test_wrong_user_is_one_who_is_judged(evaluator, planted):
    judged = np.arange(0, len(planted[0].user_ids), 2)
    evaluator.test = evaluator.test.take(np.isin(evaluator.test.user, judged))
    wrong = evaluator._wrong_users(evaluator.users())
    assert np.isin(wrong, judged).all()


@pytest.mark.parametrize(("others", "alone"), [(0, True), (1, True), (3, False)])
def test_where_nobody_of_another_group_is_there_the_wrong_user_is_any_other(bundle, planted, others, alone):
    from penchant.data import PreferenceDataset

    folder, _, features = bundle
    tables = planted[0].tables()
    users = len(planted[0].user_ids)
    groups = pa.array(["rare" if number < others else "usual" for number in range(users)])
    at = tables["users"].column_names.index("group")
    tables["users"] = tables["users"].set_column(at, "group", groups)
    made = Evaluator(PersonalisedRewardModel.load(folder), PreferenceDataset.from_tables(**tables), features)
    if others == 1:  # only themselves are of the other group, and they are not judged
        made.test = made.test.take(made.test.user != 0)
    wrong = made._wrong_users(made.users())
    assert (wrong != np.arange(users)).all()
    code = made.dataset.group
    if not alone:
        assert (code[wrong] != code).all()
    said = f"For {users - others} of {users - others} users there is nobody of another group"
    assert any(note.startswith(said) for note in made.notes) == alone


def test_who_is_alone_is_their_own_wrong_user_and_it_is_said(evaluator):
    evaluator.test = evaluator.test.take(evaluator.test.user == 0)
    assert evaluator._wrong_users(evaluator.users())[0] == 0
    assert evaluator.notes == ["There is no other user to take for the wrong one: the wrong user is the user."]


def test_unseen_users_are_embedded_from_their_train_and_valid_rows_alone(evaluator, planted):
    dataset = planted[0]
    assert set(np.unique(evaluator._onboarding.split)) <= {0, 1}
    assert not dataset.seen[evaluator._onboarding.user].any()


def test_curve_starts_at_uniform_and_uses_no_more_than_it_says(evaluator, monkeypatch):
    counts = []
    embed = evaluator.model.embed
    monkeypatch.setattr(
        evaluator.model,
        "embed",
        lambda rows, *args, **kw: counts.append(np.bincount(rows.user).max()) or embed(rows, *args, **kw),
    )
    curve = evaluator.onboarding_curve([0, 2, 4])
    assert counts == [2, 4]
    assert np.array_equal(curve[0].margins["personalised"], curve[0].margins["uniform"])
    assert not curve[4].seen.any()


def test_without_groups_there_is_no_oracle_and_the_wrong_user_is_another(bundle, planted):
    from penchant.data import PreferenceDataset

    folder, _, features = bundle
    tables = planted[0].tables()
    tables["users"] = tables["users"].drop_columns(["group"])
    plain = Evaluator(PersonalisedRewardModel.load(folder), PreferenceDataset.from_tables(**tables), features)
    judged = plain.judge(plain.users())
    assert set(judged.margins) == {"uniform", "personalised", "wrong_user"}
    wrong = plain._wrong_users(plain.users())
    assert (wrong != np.arange(len(wrong))).all()


def metrics_of(evaluator):
    judged = evaluator.judge(evaluator.users())
    bootstrap = Bootstrap(judged, resamples=20)
    return {
        "accuracy": accuracy_table(bootstrap),
        "differences": paired_differences(bootstrap),
        "recovered": {},
        "calibration": calibration_table(judged),
        "onboarding": {"kind": "neighbours", "curve": onboarding_points(evaluator.onboarding_curve([0, 4]), resamples=20)},
        "graph": {
            "chosen": "text", "valid_accuracy": 0.6, "seconds": 1.0, "candidates": [], "purity": {"seen": 0.5},
            "history": [{"candidate": "text", "step": 5, "valid_accuracy": 0.6, "loss": 0.6}],
        },
        "reward": {"valid_accuracy": {}, "seconds": 1.0, "history": []},
        "data": {},
        "notes": ["<b>a note</b>"],
        "run": {"penchant": "0", "bundle": "abc", "seconds": 1.0},
    }  # fmt: skip


def test_report_is_one_file_without_a_network(evaluator, planted, tmp_path):
    points = MapPoints(np.zeros(2), np.ones(2), np.array([True, False]), ["g", "<h>"], 2)
    write_report(tmp_path / "report.html", metrics_of(evaluator), points)
    html = (tmp_path / "report.html").read_text()
    assert "src=" not in html.split("<body")[1].split("<script")[0]
    assert "<link" not in html
    assert "&lt;b&gt;a note" in html, "what comes from data is escaped"
    for name in ("bars", "map", "onboarding", "graph", "calibration"):
        assert f'id="figure-{name}"' in html
    assert 'id="figure-reward"' not in html, "a section without numbers is left out"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.03, "+2.0 points"), (-0.01, 0.05, "has shown no gain"), (-0.05, -0.01, "makes it worse")],
)
def test_headline_says_what_the_interval_says(low, high, said):
    cell = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 5}
    metrics = {
        "accuracy": {name: {"seen": {"all": cell}} for name in ("uniform", "personalised")},
        "differences": {"personalised-uniform": {"seen": {"all": {"value": 0.02, "low": low, "high": high}}}},
    }
    (sentence,) = headline(metrics)
    assert said in sentence


def test_no_test_comparison_of_unseen_users(bundle, planted):
    from penchant.data import PreferenceDataset

    folder, _, features = bundle
    tables = planted[0].tables()
    keep = [cohort == "seen" for cohort in tables["users"]["cohort"].to_pylist()]
    seen = {user for user, kept in zip(tables["users"]["user_id"].to_pylist(), keep, strict=True) if kept}
    tables["users"] = tables["users"].filter(keep)
    tables["comparisons"] = tables["comparisons"].filter([user in seen for user in tables["comparisons"]["user_id"].to_pylist()])
    judged = (only := Evaluator(PersonalisedRewardModel.load(folder), PreferenceDataset.from_tables(**tables), features)).judge(
        only.users()
    )
    assert set(accuracy_table(Bootstrap(judged, resamples=10))["uniform"]) == {"seen"}
    assert torch.isfinite(torch.from_numpy(judged.margins["personalised"])).all()
