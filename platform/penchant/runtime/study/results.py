"""What a study found, as one JSON file: every number of its tables, from which page and plots are drawn without the fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penchant import __version__
from penchant.artifacts import read_json, write_text
from penchant.errors import ArtifactError
from penchant.runtime.study.running import StudyRun
from penchant.runtime.study.tables import Estimate, Line, part_lines

_DIGITS = 6
_Estimates = dict[tuple[str, str], Estimate]


@dataclass(frozen=True)
class Table:
    """One part on one data set."""

    part: str
    data: str
    fits: int
    """That it is to have."""
    missing: int
    """Of these."""
    lines: list[Line]


@dataclass(frozen=True)
class Part:
    """What is said of a part, whatever the data."""

    title: str
    about: str
    sweep: str | None
    """As people read what is swept."""
    rows: tuple[str, ...]
    """In the order of the study; without uniform and the oracle."""


@dataclass(frozen=True)
class StudyResults:
    """The tables of a study, those too of which nothing has been run."""

    title: str
    about: str
    command: str
    """What prints these numbers."""
    version: str
    parts: Mapping[str, Part]
    tables: list[Table]


def gather(run: StudyRun, command: str) -> StudyResults:
    """The tables of what is done.

    Raises:
        ArtifactError: Two fits were not judged on the same test choices.
    """
    study, parts, tables = run.study, {}, []
    for name, part in study.parts.items():
        parts[name] = Part(part.title, part.about, part.sweep.title if part.sweep else None, tuple(part.rows))
        for data in part.data or study.data:
            wanted = [cell for cell in run.cells([name]) if cell.data == data]
            lines = [_rounded(line) for line in part_lines(run, name, data)] if data in run.data else []
            tables.append(Table(name, data, len(wanted), sum(not run.is_done(cell) for cell in wanted), lines))
    return StudyResults(study.title, study.about, command, __version__, parts, tables)


def write_results(results: StudyResults, path: Path) -> None:
    """Writes the JSON, atomically; a line of it for each line of a table, so that two of them can be compared."""
    head: dict[str, Any] = {
        "title": results.title,
        "about": results.about,
        "command": results.command,
        "version": results.version,
    }
    head["parts"] = {name: vars(part) for name, part in results.parts.items()}
    head["tables"] = [{key: value for key, value in vars(table).items() if key != "lines"} for table in results.tables]
    lines = [{"part": table.part, "data": table.data} | _plain(line) for table in results.tables for line in table.lines]
    dumped = json.dumps({"study": head}, ensure_ascii=False, indent=1)[:-2]
    rows = ",\n".join(json.dumps(line, ensure_ascii=False, allow_nan=False) for line in lines)
    write_text(path, f'{dumped},\n "lines": [\n{rows}\n]}}\n')


def read_results(path: Path) -> StudyResults:
    """Reads what `write_results` wrote.

    Raises:
        ArtifactError: It is missing, or is something else.
    """
    values = read_json(path)
    try:
        head, lines = values["study"], values["lines"]
        parts = {name: Part(**part | {"rows": tuple(part["rows"])}) for name, part in head["parts"].items()}
        tables = [
            Table(
                **table, lines=[_line(line) for line in lines if (line["part"], line["data"]) == (table["part"], table["data"])]
            )
            for table in head["tables"]
        ]
        return StudyResults(**{key: head[key] for key in ("title", "about", "command", "version")}, parts=parts, tables=tables)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        fix = "Write it anew, with `penchant study`."
        raise ArtifactError(f"It is not a study's results ({error!r}).", where=str(path), fix=fix) from None


def _rounded(line: Line) -> Line:
    """As the file has it, so that pages drawn before and after are the same."""

    def rounded(estimates: _Estimates) -> _Estimates:
        return {cell: Estimate(*(round(number, _DIGITS) for number in vars(found).values())) for cell, found in estimates.items()}

    return replace(line, accuracy=rounded(line.accuracy), gain=rounded(line.gain), wrong=rounded(line.wrong))


def _plain(line: Line) -> dict[str, Any]:
    def plain(estimates: _Estimates) -> dict[str, list[float]]:
        return {", ".join(cell): list(vars(found).values()) for cell, found in estimates.items()}

    return vars(line) | {"accuracy": plain(line.accuracy), "gain": plain(line.gain), "wrong": plain(line.wrong)}


def _line(values: Mapping[str, Any]) -> Line:
    def estimates(plain: Mapping[str, list[float]]) -> _Estimates:
        found: _Estimates = {}
        for cell, numbers in plain.items():
            cohort, kind = cell.split(", ")
            found[cohort, kind] = Estimate(*numbers)
        return found

    own = {key: value for key, value in values.items() if key not in ("part", "data")}
    return Line(**own | {kind: estimates(values[kind]) for kind in ("accuracy", "gain", "wrong")})
