"""ASHA, taken up after an interruption with what the journal says."""

import pickle
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from penchant.runtime.tuning.journal import Journal, RecordedAsha
from penchant.storage import MirroredFolder

STEPS = 8


def trial(name, status=Trial.PENDING):
    return SimpleNamespace(trial_id=name, is_finished=lambda: status in (Trial.TERMINATED, Trial.ERROR))


@pytest.fixture
def journal(tmp_path):
    return Journal(MirroredFolder(tmp_path, identity="run.json", growing=[]))


@pytest.fixture
def saved(journal):
    """What Ray Tune keeps: the scheduler before any trial."""
    return pickle.dumps(RecordedAsha(journal, steps=STEPS, first=2, factor=2))


def see(asha, journal, seen, step, accuracy):
    """A look, as Ray Tune tells of it: first to the scheduler, then to the journal."""
    look = {"step": step, "accuracy": accuracy}
    decision = asha.on_trial_result(None, seen, look)
    journal.write(event="look", trial=seen.trial_id, **look)
    if decision == TrialScheduler.STOP:
        asha.on_trial_complete(None, seen, look)
    return decision


def test_a_sweep_that_is_taken_up_stops_whom_it_would_have_stopped(saved, journal):
    uninterrupted = pickle.loads(saved)
    for name, accuracies in {"good": (0.7, 0.8, 0.8, 0.9), "poor": (0.5,), "failed": (0.72,), "under-way": (0.99,)}.items():
        seen = trial(name)
        uninterrupted.on_trial_add(None, seen)
        for step, accuracy in zip((2, 4, 6, STEPS), accuracies, strict=False):
            see(uninterrupted, journal, seen, step, accuracy)
    stopped = [record for record in journal.read() if record["event"] == "stopped"]
    assert [record["trial"] for record in stopped] == ["poor"]

    again = pickle.loads(saved)
    restored = [
        trial("good", Trial.TERMINATED), trial("poor", Trial.TERMINATED), trial("failed", Trial.ERROR), trial("under-way"),
        trial("never-looked", Trial.TERMINATED),
    ]  # fmt: skip
    for one in restored:
        again.on_trial_add(None, one)
    assert [record for record in journal.read() if record["event"] == "stopped"] == stopped, "nothing is told twice"
    (bracket,) = again._brackets
    assert bracket._rungs == [
        (8, {"good": 0.9}),
        (4, {"good": 0.8}),
        (2, {"good": 0.7, "poor": 0.5, "failed": 0.72}),
    ]
    assert see(again, journal, restored[3], 2, 0.6) == TrialScheduler.STOP
    fresh = trial("fresh")
    again.on_trial_add(None, fresh)
    assert see(again, journal, fresh, 2, 0.75) == TrialScheduler.CONTINUE
