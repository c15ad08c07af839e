"""What happened in a sweep, as it happens: JSON lines that the driver alone writes, and everything shown is made from.

Events, each with its fields::

    started     trial, values, at         a trial began, or began again
    look        trial, step, accuracy...  it looked at the validation comparisons
    stopped     trial, step               ASHA stopped it
    completed   trial, out_of_time, at    it ended: by itself, by ASHA, or because the sweep's time was up
    failed      trial, values, again...     it raised an error; `again` says whether it is tried again
    refused     values, reason            a proposal that cannot be
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from penchant.artifacts import read_json, write_json
from penchant.errors import StorageError
from penchant.runtime.training.progress import ProgressLog
from penchant.storage import MirroredFolder

JOURNAL, CLOCK = "journal.jsonl", "clock.json"
LOOK = (
    "step", "accuracy", "valid_accuracy", "compared", "parameters", "step_seconds", "training_seconds", "shared_seconds",
)  # fmt: skip
"""What a look says."""


class Journal(ProgressLog):
    """The journal of a sweep. Ray Tune keeps it with its state, by which another machine takes the sweep up.

    Args:
        folder: The sweep's.
        shared: What another machine needs besides, in the folder.
    """

    def __init__(self, folder: MirroredFolder, shared: Sequence[str] = ()) -> None:
        super().__init__(folder.path / JOURNAL)
        self.folder, self.shared = folder, shared

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The folder may have another place here."""
        vars(self).update(state)
        self.path = self.folder.path / JOURNAL

    def share(self) -> None:
        """Makes what has happened known to other machines.

        Raises:
            StorageError: It cannot be written there.
        """
        self.folder.share(JOURNAL, *self.shared)


class Clock(tune.Stopper):
    """How long the trials have run, over all times that the sweep was taken up; stops them all when the time is up.

    Args:
        folder: The sweep's; a file in it keeps the seconds.
        limit: Seconds at most; None for no limit.
    """

    def __init__(self, folder: MirroredFolder, limit: float | None) -> None:
        self.folder, self.limit = folder, math.inf if limit is None else limit
        self._last: float | None = None
        self._written = 0.0
        self._used = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Without the moments of this process's clock: Ray Tune saves the stopper, and takes a sweep up with it, maybe days later
        and on another machine. What was used until then is in the file."""
        return vars(self) | {"_last": None, "_written": 0.0}

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder.path / CLOCK

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped by itself."""
        return False

    def stop_all(self) -> bool:
        """Counts the time since the last call, and says whether it is up."""
        now = time.monotonic()
        if self._last is None:
            self._used = self.seconds()
        else:
            self._used += now - self._last
        self._last = now
        if now - self._written >= 1 or self._used >= self.limit:
            self._written = now
            write_json(self.path, {"seconds": round(self._used, 2)})
        return self._used >= self.limit

    def seconds(self) -> float:
        """What is written."""
        return float(read_json(self.path)["seconds"]) if self.path.is_file() else 0.0

    @property
    def is_up(self) -> bool:
        """Whether the time is up, by what is written."""
        return self.seconds() >= self.limit


class RecordedAsha(ASHAScheduler):
    """ASHA that writes down whom it stops, and knows from the journal how trials did before an interruption.

    Args:
        journal: Where.
        steps: Of a trial that is never stopped.
        first: Steps before the first rung.
        factor: Of the trials at a rung, 1 / factor go on.
    """

    def __init__(self, journal: ProgressLog, *, steps: int, first: int, factor: float) -> None:
        super().__init__(
            time_attr="step", metric="accuracy", mode="max", max_t=steps, grace_period=first, reduction_factor=factor
        )
        self.journal, self.steps = journal, steps

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Takes a trial on; one that has ended already, in a sweep that is taken up, with its looks."""
        super().on_trial_add(tune_controller, trial)
        if trial.is_finished():
            # Ray Tune takes a sweep up with the scheduler that it began with, which has seen no trial. Those that were under
            # way begin again, and are seen then.
            self._remember(tune_controller, trial)

    def _remember(self, tune_controller: Any, trial: Trial) -> None:
        name = trial.trial_id
        looks = [record for record in self.journal.read() if record["event"] == "look" and record["trial"] == name]
        for look in looks:
            super().on_trial_result(tune_controller, trial, look)
        super().on_trial_complete(tune_controller, trial, looks[-1] if looks else {})

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """ASHA's decision."""
        action = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.STOP and result["step"] < self.steps:
            self.journal.write(event="stopped", trial=trial.trial_id, step=result["step"])
        return action


class JournalCallback(tune.Callback):
    """Writes what Ray Tune tells of its trials into the journal, which is shared after each of them."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self.journal, self.clock = journal, clock

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial was given its resources."""
        self.journal.write(event="started", trial=trial.trial_id, values=trial.config, at=time.time())

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        """A trial looked at the validation comparisons."""
        self.journal.write(event="look", trial=trial.trial_id, **{key: result[key] for key in LOOK})

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial ended without an error."""
        self._ended(event="completed", trial=trial.trial_id, out_of_time=self.clock.is_up, at=time.time())

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed, and is tried again."""
        self._failed(trial, again=True)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed, and is given up."""
        self._failed(trial, again=False)

    def _failed(self, trial: Trial, *, again: bool) -> None:
        path = trial.error_file
        said = Path(path).read_text(encoding="utf-8") if path and Path(path).is_file() else ""
        # It may have failed before it was started.
        facts = {"values": trial.config, "reason": reason_of(said), "at": time.time()}
        self._ended(event="failed", trial=trial.trial_id, again=again, **facts)

    def _ended(self, **record: Any) -> None:
        self.journal.write(**record)
        with contextlib.suppress(StorageError):  # the next one takes it along, or the end of the sweep, which says so
            self.journal.share()


def reason_of(trace: str) -> str:
    """What was said in the first place: the last line of a trace, without the error's name."""
    lines = trace.strip().splitlines()
    return re.sub(r"^[\w.]+: ", "", lines[-1].strip()) if lines else "It ended without a word."
