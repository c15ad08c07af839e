"""From fits to tables: accuracy over seeds, with intervals and paired differences.

Every fit of a data set is judged on the same test choices. So all fits of a part are resampled together, users and prompts, as
in one fit's evaluation (`evaluation.metrics.Bootstrap`), and a row is the mean of its seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from penchant.errors import ArtifactError
from penchant.evaluation.judgements import Judgements, read_judgements
from penchant.evaluation.metrics import Bootstrap, correctness, interval
from penchant.runtime.study.running import StudyRun
from penchant.runtime.study.settings import ENDS, Cell

PERSONALISED, WRONG = "personalised", "wrong_user"
_Key = tuple[str, Any]
"""A row and its value of the sweep."""


@dataclass(frozen=True)
class Estimate:
    """A share, or a difference of two, and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """What a table says of one row, at one value of its part's sweep."""

    row: str
    value: Any
    seeds: int
    accuracy: dict[tuple[str, str], Estimate]
    """(cohort, kind) -> share of the test choices ranked right."""
    gain: dict[tuple[str, str], Estimate]
    """The same less that of the part's first row at the same value, paired, over the seeds that both have; of the first row, less
    that at its first value. Empty where that has not been run."""
    wrong: dict[tuple[str, str], Estimate]
    """The same given another user's embedding; empty for uniform and oracle."""
    seconds: float | None
    """Of a fit and its evaluation, mean over seeds, as the machine was."""


def part_lines(run: StudyRun, part: str, data: str) -> list[Line]:
    """The table of a part for one data set, of the fits that are done; uniform and oracle of the first row stand behind.

    Raises:
        ArtifactError: Two fits were not judged on the same test choices.
    """
    groups: dict[_Key, list[Cell]] = {}
    for cell in run.cells([part]):
        if cell.data == data and run.is_done(cell):
            groups.setdefault((cell.row, cell.value), []).append(cell)
    if not groups:
        return []
    first = next(iter(groups))
    sweep = run.study.parts[part].sweep
    moved = sweep is not None and sweep.moves_uniform
    beside = [key for key in groups if key == first or (moved and key[0] == first[0])]
    sources = {key: (PERSONALISED, WRONG, *(ENDS if key in beside else ())) for key in groups}
    draws = _Draws(run, groups, sources)
    lines = []
    for key, group in groups.items():
        base = first if key[0] == first[0] else (first[0], key[1])
        gain = {} if key == base or base not in groups else draws.difference(key, PERSONALISED, base)
        seconds = float(np.mean([run.metrics(cell)["run"]["seconds"] for cell in group]))
        lines.append(Line(*key, len(group), draws.mean(key, PERSONALISED), gain, draws.mean(key, WRONG), seconds))
    for end in ENDS:
        for key in beside:
            accuracy = draws.mean(key, end)
            if accuracy:
                value = key[1] if moved else None
                lines.append(Line(end, value, len(groups[key]), accuracy, draws.difference(key, end, key), {}, None))
    return lines


class _Draws:
    """The fits of a part on the same resampled users and prompts. A share is a mean, so those of seeds are averaged draw by draw.

    Args:
        sources: The models that are wanted of each group's fits; one that a fit has not is left out.
    """

    def __init__(self, run: StudyRun, groups: Mapping[_Key, Sequence[Cell]], sources: Mapping[_Key, Sequence[str]]) -> None:
        self.seeds = {key: {cell.seed for cell in group} for key, group in groups.items()}
        frame: Judgements | None = None
        share: dict[str, np.ndarray] = {}
        for key, group in groups.items():
            for cell in group:
                judged = read_judgements(run.folder(cell) / "judgements.parquet")
                frame = frame or judged
                if not (np.array_equal(frame.user, judged.user) and np.array_equal(frame.prompt, judged.prompt)):
                    raise ArtifactError("It was judged on other test choices.", where=str(run.folder(cell)), fix="Remove it.")
                there = [source for source in sources[key] if source in judged.margins]
                share |= {_name(key, source, cell.seed): correctness(judged.margins[source]) for source in there}
        assert frame is not None
        whole = Judgements(frame.user, frame.prompt, frame.seen, frame.controversial, share)
        self.bootstrap = Bootstrap(whole, resamples=run.study.resamples, methods=tuple(share), measure=lambda values: values)
        self.names = set(share)

    def mean(self, key: _Key, source: str) -> dict[tuple[str, str], Estimate]:
        """A model's share by (cohort, kind), over its seeds."""
        return self._estimates([(1, key, source)], self.seeds[key])

    def difference(self, key: _Key, source: str, base: _Key) -> dict[tuple[str, str], Estimate]:
        """A model's share less that of the base's own, over the seeds that both have."""
        return self._estimates([(1, key, source), (-1, base, PERSONALISED)], self.seeds[key] & self.seeds[base])

    def _estimates(self, terms: Sequence[tuple[int, _Key, str]], seeds: Set[int]) -> dict[tuple[str, str], Estimate]:
        signed = [(sign / len(seeds), _name(key, source, seed)) for sign, key, source in terms for seed in sorted(seeds)]
        if not signed or not {name for _, name in signed} <= self.names:
            return {}
        found = {}
        for cell in self.bootstrap.cells:
            value = sum(weight * self.bootstrap.value[name, *cell] for weight, name in signed)
            drawn = sum(weight * self.bootstrap.resampled[name, *cell] for weight, name in signed)
            widest = (0.0, 1.0) if len({sign for sign, _, _ in terms}) == 1 else (-1.0, 1.0)
            found[cell] = Estimate(value, *interval(np.asarray(drawn), widest=widest))
        return found


def _name(key: _Key, source: str, seed: int) -> str:
    return repr((*key, source, seed))
