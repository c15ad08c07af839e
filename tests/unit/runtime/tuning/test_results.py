import math
import pickle

import pytest

from penchant.cli.tune import parse_seconds, show_trials
from penchant.errors import ConfigError, TrainingError
from penchant.runtime.tuning.journal import Clock, reason_of
from penchant.runtime.tuning.report import heat_map, importance, write_sweep_report
from penchant.runtime.tuning.results import TrialRow, best_of, front, ranked, read_trials, summary, why
from penchant.runtime.tuning.show import note
from penchant.runtime.tuning.space import Space
from penchant.storage import MirroredFolder

DEPTH, EXPERTS = "graph.candidates.*.encoder.num_layers", "experts.num_experts"


def look(trial, step, accuracy, best=None, **values):
    shown = {"step": step, "valid_accuracy": accuracy, "accuracy": max(accuracy, best or 0.0), "parameters": 10}
    shown["compared"] = 10_000
    return (
        {"event": "look", "trial": trial, "step_seconds": 0.5, "training_seconds": step, "shared_seconds": 1.0} | shown | values
    )


def started(trial, depth=1, experts=1, at=0.0):
    return {"event": "started", "trial": trial, "values": {DEPTH: depth, EXPERTS: experts}, "at": at}


def completed(trial, at=20.0, out_of_time=False):
    return {"event": "completed", "trial": trial, "out_of_time": out_of_time, "at": at}


def failed(trial, again, at=20.0):
    values = {DEPTH: 2, EXPERTS: 1}
    return {"event": "failed", "trial": trial, "values": values, "again": again, "reason": "The loss is nan.", "at": at}


RECORDS = [
    {"event": "refused", "values": {}, "reason": "too many"},
    started("a", 1, 1), look("a", 6, 0.60), look("a", 12, 0.59, best=0.60), completed("a"),
    started("b", 1, 2), look("b", 6, 0.55), {"event": "stopped", "trial": "b", "step": 6}, completed("b", at=10),
    started("c", 2, 1), failed("c", True), started("c", 2, 1, at=30), look("c", 6, 0.99), failed("c", False, at=40),
    started("d", 2, 2), look("d", 6, 0.50), started("d", 2, 2, at=50), look("d", 6, 0.61, parameters=20), completed("d", at=60),
    started("e", 4, 1), look("e", 6, 0.58), completed("e", out_of_time=True),
    started("f", 4, 2), completed("f", out_of_time=True),
]  # fmt: skip


@pytest.fixture
def rows():
    return read_trials(RECORDS)


def test_the_journal_says_how_each_trial_ended(rows):
    assert [row.state for row in rows] == ["finished", "stopped early", "failed", "finished", "out of time", "out of time"]
    a, b, c, d, *_ = rows
    assert (a.accuracy, a.steps, a.seconds) == (0.60, 12, 20.0)
    assert (b.steps, b.seconds) == (6, 10.0)
    assert (c.failures, c.reason, c.seconds) == (2, "The loss is nan.", 30.0)
    assert [point["valid_accuracy"] for point in d.looks] == [0.61], "it began again, and its old looks are gone"


def test_the_best_is_the_best_by_its_own_looks_and_never_one_that_failed(rows):
    assert best_of(rows).trial == "d"
    assert [row.trial for row in ranked(rows)] == ["d", "a", "e", "b"]
    found = summary(rows)
    assert found["stopped_early_share"] == pytest.approx(1 / 3)
    assert found["overhead_seconds_a_trial"] == pytest.approx(((20 - 13) + (10 - 7) + (10 - 7) + (20 - 7)) / 4)
    assert "best 0.6100 (num_layers 2, num_experts 2)" in note(rows)
    assert "1 failed" in note(rows)


def test_a_trial_that_comes_again_under_another_name_is_one_trial():
    lost = [started("a"), look("a", 6, 0.7), started("b"), completed("a", at=5), look("b", 6, 0.6), completed("b")]
    (row,) = read_trials(lost)
    assert (row.trial, row.state, row.accuracy) == ("b", "finished", 0.6)


@pytest.mark.parametrize(("compared", "chosen"), [(100, "b"), (10_000, "c")])
def test_of_those_within_a_standard_error_of_the_most_accurate_the_smallest_is_taken(compared, chosen):
    accuracy = {"a": (0.76, 30), "b": (0.77, 10), "c": (0.80, 40), "d": (0.72, 1)}
    records = [
        record
        for number, (trial, (right, parameters)) in enumerate(accuracy.items())
        for record in (started(trial, number), look(trial, 6, right, parameters=parameters, compared=compared), completed(trial))
    ]
    rows = read_trials(records)
    best, most = best_of(rows), best_of(rows, "most_accurate")
    assert (best.trial, most.trial) == (chosen, "c")
    assert most.standard_error == pytest.approx((0.8 * 0.2 / compared) ** 0.5)
    said = why(best, most)
    assert ("standard error of 0.0400" in said) == (chosen == "b")
    assert ("most accurate" in said) == (chosen == "c")


@pytest.mark.parametrize(("accuracy", "taken_for"), [(1.02, 1.0), (-0.01, 0.0), (0.8, 0.8)])
def test_an_accuracy_that_is_a_sum_may_lie_beyond_what_a_share_can_be(accuracy, taken_for):
    (row,) = read_trials([started("a"), look("a", 6, accuracy, best=accuracy, compared=100), completed("a")])
    assert row.standard_error == pytest.approx(math.sqrt(taken_for * (1 - taken_for) / 100))
    assert best_of([row]).trial == "a"


def test_of_equals_the_earlier_is_taken():
    equal = [started("x", 1), look("x", 6, 0.6), completed("x"), started("y", 2), look("y", 6, 0.6), completed("y")]
    assert best_of(read_trials(equal)).trial == "x"


def test_a_trial_that_failed_before_it_was_started_is_there():
    (row,) = read_trials([failed("a", True), failed("a", False)])
    assert (row.state, row.failures, row.reason) == ("failed", 2, "The loss is nan.")


def test_no_look_is_no_best():
    with pytest.raises(TrainingError, match=r"No trial came to a look.*The loss is nan"):
        best_of(read_trials([started("a"), failed("a", False)]))


def test_the_front_leaves_out_what_is_beaten(rows):
    assert [row.trial for row in front(rows, ("accuracy", "parameters"))] == ["d", "a"]
    assert [row.trial for row in front(rows, ("accuracy",))] == ["d"]


def space(**values):
    parameters = {DEPTH: {"choice": [1, 2, 4]}, EXPERTS: {"choice": [1, 2]}}
    return Space.model_validate({"stage": "reward", "parameters": parameters} | values)


@pytest.mark.parametrize("objectives", [["accuracy"], ["accuracy", "parameters"]])
def test_the_report_shows_everything_in_one_file(rows, tmp_path, capsys, objectives):
    found = summary(rows) | {"refused": {"too <many>": 1}, "seconds": 90.0}
    values = {"best": "d", "why": "Trial 4 is <small>.", "objectives": objectives, "summary": found, "front": ["d", "a"]}
    write_sweep_report(tmp_path / "sweep.html", space(objectives=objectives), rows, values)
    html = (tmp_path / "sweep.html").read_text()
    for figure in ("history", "heat", "parallel", "importance", "curves"):
        assert f'id="figure-{figure}"' in html
    assert ('id="figure-front"' in html) == (len(objectives) > 1)
    assert "<script src" not in html
    assert "The loss is nan." in html
    assert "too &lt;many&gt;" in html
    assert "Trial 4 is &lt;small&gt;." in html
    show_trials(ranked(rows) + [row for row in rows if not row.counts], values)
    said = capsys.readouterr().out
    assert "The loss is nan." in said
    assert "too <many>" in said
    assert "Chosen: Trial 4 is <small>." in said


def test_the_heat_map_has_the_best_of_each_pair(rows):
    figure = heat_map(space(), rows, {})
    assert figure.layout.yaxis.title.text == "num_layers"
    assert figure.data[0].z[0].tolist() == [0.60, 0.55]
    assert figure.data[0].z[1].tolist()[1] == 0.61
    assert figure.data[0].text[1][0] == "", "the failed trial is not shown"


def test_importance_finds_what_matters():
    rows = []
    for number in range(30):
        depth, experts = (1, 2, 4)[number % 3], (1, 2)[number // 3 % 2]
        values = {DEPTH: depth, EXPERTS: experts}
        rows.append(TrialRow(str(number), number, values, "finished", accuracy=0.5 + 0.1 * (depth == 4)))
    weights = importance(space(), rows)
    assert weights[DEPTH] > 0.9
    assert importance(space(), rows[:3]) == {}


def test_the_clock_goes_on_where_it_stopped(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("penchant.runtime.tuning.journal.time.monotonic", lambda: now[0])
    folder = MirroredFolder(tmp_path, identity="run.json", growing=[])
    clock = Clock(folder, 10)
    assert not clock.stop_all()
    now[0] += 6
    assert not clock.stop_all()
    now[0] += 1000  # the sweep was interrupted
    again = Clock(folder, 10)
    assert not again.stop_all()
    now[0] += 5
    assert again.stop_all()
    assert again.is_up
    assert again.seconds() == pytest.approx(11)
    assert not Clock(MirroredFolder(tmp_path / "other", identity="run.json", growing=[]), None).stop_all()


@pytest.mark.parametrize("started_at", [0.0, 100.0, 1e6])
def test_the_clock_that_ray_tune_has_saved_does_not_count_the_interruption(tmp_path, monkeypatch, started_at):
    now = [1000.0]
    monkeypatch.setattr("penchant.runtime.tuning.journal.time.monotonic", lambda: now[0])
    clock = Clock(MirroredFolder(tmp_path, identity="run.json", growing=[]), 10)
    assert not clock.stop_all()
    now[0] += 6
    assert not clock.stop_all()
    saved = pickle.dumps(clock)
    now[0] += 1
    assert not clock.stop_all(), "the one that was saved goes on"
    assert clock.seconds() == pytest.approx(7)
    now[0] = started_at  # a machine's clock counts from its own start
    again = pickle.loads(saved)
    assert not again.stop_all()
    now[0] += 2
    assert not again.stop_all()
    assert again.seconds() == pytest.approx(9)
    now[0] += 1
    assert again.stop_all()


def test_a_reason_is_the_last_line_of_a_trace():
    assert reason_of("Failure # 1\nTraceback\npenchant.errors.DataError: here: It is wrong.\n") == "here: It is wrong."
    assert reason_of("a worker died\n\n") == "a worker died"
    assert reason_of("") == "It ended without a word."


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_times(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "30 minutes", "-5m", "0"])
def test_no_time(text):
    with pytest.raises(ConfigError, match="is no time"):
        parse_seconds(text)
