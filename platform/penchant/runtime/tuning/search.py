"""The search: Optuna's TPE, which is asked again where what it proposes cannot be, or was tried."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from penchant.artifacts import fingerprint
from penchant.runtime.training.progress import ProgressLog
from penchant.runtime.tuning.candidates import Check, starting_point
from penchant.runtime.tuning.space import Space

MODES = {"accuracy": "max", "parameters": "min", "step_seconds": "min"}
"""Which way each objective is better."""
_FEW = 10_000
"""A space of at most so many points is counted, so that none is tried twice and the search ends with the last."""
_PATIENCE = 50
"""Proposals in a row that cannot be used before another way is taken, or the search ends."""


class CheckedSearch(OptunaSearch):
    """Optuna's search over a space, starting from the base's own values.

    Args:
        space: What is searched.
        check: Says why a proposal cannot be.
        journal: Where refused proposals are written, with their reason.
    """

    _ot_study: Any

    def __init__(self, space: Space, check: Check, journal: ProgressLog) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        first = starting_point(space, check.base)
        several = len(space.objectives) > 1
        modes = [MODES[name] for name in space.objectives]
        self.check, self.journal = check, journal
        self.options = {key: parameter.options() for key, parameter in space.parameters.items()}
        self.used: set[str] = set()
        """Fingerprints of what was tried or refused."""
        self.random = np.random.default_rng(space.seed)
        super().__init__(
            space={key: parameter.distribution() for key, parameter in space.parameters.items()},
            metric=list(space.objectives) if several else space.objectives[0],
            mode=modes if several else modes[0],
            points_to_evaluate=None if first is None else [first],
            sampler=optuna.samplers.TPESampler(seed=space.seed, multivariate=True, constant_liar=True),
        )

    def suggest(self, trial_id: str) -> Any:
        """The values of the next trial; `Searcher.FINISHED` where there is nothing left to try."""
        in_vain, refused = 0, 0
        while in_vain < 2 * _PATIENCE and refused < _FEW:
            values: Any = super().suggest(trial_id)
            key = fingerprint(values)
            if key not in self.used:
                self.used.add(key)
                reason = self.check(values)
                if reason is None:
                    return values
                refused += 1
                self.journal.write(event="refused", values=values, reason=reason)
                # Optuna learns that this is no good place, which it would not from a failure.
                self._give_back(trial_id, TrialState.PRUNED)
                continue
            in_vain += 1
            self._give_back(trial_id, TrialState.FAIL)
            if in_vain >= _PATIENCE and not self._enqueue_untried():
                break
        return Searcher.FINISHED

    def _give_back(self, trial_id: str, state: TrialState) -> None:
        self._ot_study.tell(self._ot_trials.pop(trial_id), state=state)

    def _enqueue_untried(self) -> bool:
        """Has Optuna propose a point that was never used, where these can be counted; False where none is left."""
        counted = {key: options for key, options in self.options.items() if options is not None}
        if len(counted) < len(self.options) or math.prod(map(len, counted.values())) > _FEW:
            return False
        points = (dict(zip(counted, chosen, strict=True)) for chosen in itertools.product(*counted.values()))
        untried: list[dict[str, Any]] = [point for point in points if fingerprint(point) not in self.used]
        if untried:
            self._ot_study.enqueue_trial(untried[self.random.integers(len(untried))])
        return bool(untried)
