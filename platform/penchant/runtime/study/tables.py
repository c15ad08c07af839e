"""From fits to tables: accuracy over seeds, with intervals and paired differences.

Every fit of a data set is judged on the same test choices. So a row's correctness is averaged over its seeds choice by choice,
and all rows of a part are resampled together: users and prompts, as in one fit's evaluation (`evaluation.metrics.Bootstrap`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from penchant.errors import ArtifactError
from penchant.evaluation.judgements import Judgements, read_judgements
from penchant.evaluation.metrics import Bootstrap, correctness, interval
from penchant.runtime.study.running import StudyRun
from penchant.runtime.study.settings import ENDS, Cell

WRONG, BESIDE = "wrong user", "beside"


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
    """The same less that of the part's first row at the same value, paired; of the first row, less that at its first value."""
    wrong: dict[tuple[str, str], Estimate]
    """The same given another user's embedding; empty for uniform and oracle."""
    seconds: float | None
    """Of a fit and its evaluation, mean over seeds, as the machine was."""


def part_lines(run: StudyRun, part: str, data: str) -> list[Line]:
    """The table of a part for one data set, of the fits that are done; uniform and oracle of the first row stand behind.

    Raises:
        ArtifactError: Two fits were not judged on the same test choices.
    """
    groups: dict[tuple[str, Any], list[Cell]] = {}
    for cell in run.cells([part]):
        if cell.data == data and run.is_done(cell):
            groups.setdefault((cell.row, cell.value), []).append(cell)
    if not groups:
        return []
    first = next(iter(groups))
    sweep = run.study.parts[part].sweep
    moved = sweep is not None and sweep.moves_uniform
    ends: dict[tuple[str, Any], tuple[str, Any]] = {}
    frame: Judgements | None = None
    share: dict[str, np.ndarray] = {}
    for key, group in groups.items():
        for cell in group:
            judged = read_judgements(run.folder(cell) / "judgements.parquet")
            frame = frame or judged
            if not (np.array_equal(frame.user, judged.user) and np.array_equal(frame.prompt, judged.prompt)):
                raise ArtifactError("It was judged on other test choices.", where=str(run.folder(cell)), fix="Remove it.")
            right = {name: correctness(margin) / len(group) for name, margin in judged.margins.items()}
            names = {_name(key): "personalised", _name(key, WRONG): "wrong_user"}
            if key == first or (moved and key[0] == first[0]):
                there = {(name, key[1] if moved else None): key for name in ENDS if name in right}
                names |= {_name(end, BESIDE): end[0] for end in there}
                ends |= there
            for name, source in names.items():
                share[name] = share.get(name, 0) + right[source]
    assert frame is not None
    whole = Judgements(frame.user, frame.prompt, frame.seen, frame.controversial, share)
    bootstrap = Bootstrap(whole, resamples=run.study.resamples, methods=tuple(share), measure=lambda values: values)
    lines = []
    for key, group in groups.items():
        seconds = float(np.mean([run.metrics(cell)["run"]["seconds"] for cell in group]))
        other = (first[0], key[1])
        base = other if key[0] != first[0] and other in groups else first
        gain = {} if key == base else _estimates(bootstrap, _name(key), less=_name(base))
        wrong = _estimates(bootstrap, _name(key, WRONG))
        lines.append(Line(*key, len(group), _estimates(bootstrap, _name(key)), gain, wrong, seconds))
    for end, key in sorted(ends.items(), key=lambda item: ENDS.index(item[0][0])):
        gain = _estimates(bootstrap, _name(end, BESIDE), less=_name(key))
        lines.append(Line(*end, len(groups[key]), _estimates(bootstrap, _name(end, BESIDE)), gain, {}, None))
    return lines


def _name(key: tuple[str, Any], *more: str) -> str:
    return repr((*key, *more))


def _estimates(bootstrap: Bootstrap, name: str, *, less: str | None = None) -> dict[tuple[str, str], Estimate]:
    found = {}
    for cell in bootstrap.cells:
        value, drawn = bootstrap.value[name, *cell], bootstrap.resampled[name, *cell]
        if less is not None:
            value, drawn = value - bootstrap.value[less, *cell], drawn - bootstrap.resampled[less, *cell]
        found[cell] = Estimate(value, *interval(drawn))
    return found
