"""From fits to tables: accuracy over seeds, with intervals and paired differences.

Every fit of a data set is judged on the same test choices. So a row's correctness is averaged over its seeds choice by choice,
and all rows of a part are resampled together: users and prompts, as in one fit's evaluation (`evaluation.metrics.Bootstrap`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penchant.errors import ArtifactError
from penchant.evaluation.judgements import Judgements, read_judgements
from penchant.evaluation.metrics import Bootstrap, correctness, interval
from penchant.runtime.study.running import StudyRun
from penchant.runtime.study.settings import ENDS, Cell

PERSONALISED = "personalised"
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
    that at its first value."""
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
    frame, right = _read(run, groups)
    means = _Means(right)
    planned: list[tuple[_Key, int, str, str | None, tuple[str, str] | None, float | None]] = []
    for key, group in groups.items():
        other = (first[0], key[1])
        base = other if key[0] != first[0] and other in groups else first
        against = None if key == base else means.paired(key, PERSONALISED, base)
        took = float(np.mean([run.metrics(cell)["run"]["seconds"] for cell in group]))
        planned.append((key, len(group), means.of(key, PERSONALISED), means.of(key, "wrong_user"), against, took))
    for end in ENDS:
        for key, group in groups.items():
            if (key == first or (moved and key[0] == first[0])) and all(end in made for made in right[key].values()):
                of_end = (end, key[1] if moved else None)
                planned.append((of_end, len(group), means.of(key, end), None, means.paired(key, end, key), None))
    whole = Judgements(frame.user, frame.prompt, frame.seen, frame.controversial, means.share)
    bootstrap = Bootstrap(whole, resamples=run.study.resamples, methods=tuple(means.share), measure=lambda values: values)
    lines = []
    for key, seeds, name, wrong, against, seconds in planned:
        gain = {} if against is None else _estimates(bootstrap, against[0], less=against[1])
        of_wrong = {} if wrong is None else _estimates(bootstrap, wrong)
        lines.append(Line(*key, seeds, _estimates(bootstrap, name), gain, of_wrong, seconds))
    return lines


def _read(
    run: StudyRun, groups: Mapping[_Key, Sequence[Cell]]
) -> tuple[Judgements, dict[_Key, dict[int, dict[str, np.ndarray]]]]:
    """What all fits were judged on, and which choices each model of each seed's fit ranked right."""
    frame: Judgements | None = None
    right: dict[_Key, dict[int, dict[str, np.ndarray]]] = {}
    for key, group in groups.items():
        for cell in group:
            judged = read_judgements(run.folder(cell) / "judgements.parquet")
            frame = frame or judged
            if not (np.array_equal(frame.user, judged.user) and np.array_equal(frame.prompt, judged.prompt)):
                raise ArtifactError("It was judged on other test choices.", where=str(run.folder(cell)), fix="Remove it.")
            made = {name: correctness(margin) for name, margin in judged.margins.items()}
            right.setdefault(key, {})[cell.seed] = made
    assert frame is not None
    return frame, right


class _Means:
    """Averages over seeds, choice by choice, each under a name of its own."""

    def __init__(self, right: Mapping[_Key, Mapping[int, Mapping[str, np.ndarray]]]) -> None:
        self.right = right
        self.share: dict[str, np.ndarray] = {}

    def of(self, key: _Key, source: str, seeds: Iterable[int] | None = None) -> str:
        """The name of a model's average, by default over all seeds that there are."""
        chosen = sorted(self.right[key] if seeds is None else seeds)
        name = repr((key, source, chosen))
        if name not in self.share:
            self.share[name] = np.mean([self.right[key][seed][source] for seed in chosen], axis=0)
        return name

    def paired(self, key: _Key, source: str, base: _Key) -> tuple[str, str] | None:
        """The names of a model's average and that of the base's own, over the seeds that both have; None if they share none."""
        seeds = set(self.right[key]) & set(self.right[base])
        return (self.of(key, source, seeds), self.of(base, PERSONALISED, seeds)) if seeds else None


def _estimates(bootstrap: Bootstrap, name: str, *, less: str | None = None) -> dict[tuple[str, str], Estimate]:
    found = {}
    for cell in bootstrap.cells:
        value, drawn = bootstrap.value[name, *cell], bootstrap.resampled[name, *cell]
        if less is not None:
            value, drawn = value - bootstrap.value[less, *cell], drawn - bootstrap.resampled[less, *cell]
        found[cell] = Estimate(value, *interval(drawn))
    return found
