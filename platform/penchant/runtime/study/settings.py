"""What a study is: data sets, seeds, and parts of rows that are laid side by side."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from penchant.config import Settings, load_settings, validate_settings
from penchant.data.changes import ChangeSettings
from penchant.data.planted import PlantedWorld
from penchant.runtime.training.config import FitSettings

_CHANGE = "change."
ENDS = ("uniform", "oracle")
"""What stands beside the rows, from the fits of the first; at each value of a sweep that moves it."""


class RowSettings(Settings):
    """One row: how it differs from the study's common settings, and what is done to the training choices."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Of the fit, nested as in a `--config` file."""
    change: ChangeSettings = ChangeSettings()
    """Of the data."""


class SweepSettings(Settings):
    """One setting that every row of a part is run with at each of several values."""

    key: str
    """Dotted: a setting of the fit, or `change.` and one of the change."""
    values: tuple[bool | int | float | str, ...] = Field(min_length=2)
    """Its values, in the order of the table. What is none of these, null or a list, is a row's setting instead."""
    title: str
    """As people read it."""

    @property
    def changes_choices(self) -> bool:
        """Whether it is a change of the data that is swept."""
        return self.key.startswith(_CHANGE)

    @property
    def moves_uniform(self) -> bool:
        """Whether uniform and the oracle are made from it, too: they know nothing of what makes users' embeddings."""
        return self.key.partition(".")[0] not in ("graph", "method", "onboarding", "evaluation", "workers", "tracking")


class PartSettings(Settings):
    """Rows that belong together: a table, or with a sweep also a plot."""

    title: str
    """Of the table."""
    about: str = ""
    """What it shows, in a sentence or two."""
    data: tuple[str, ...] | None = None
    """Names of data sets; by default all."""
    seeds: tuple[int, ...] | None = None
    """By default the study's."""
    rows: dict[str, RowSettings] = Field(min_length=1)
    """By name. The first is what the others are compared with."""
    sweep: SweepSettings | None = None
    """What each row is run over."""


class StudySettings(Settings):
    """A study."""

    title: str
    """Of the page."""
    about: str = ""
    """What a reader of the page should know first, in Markdown: whose choices these are, what is missing."""
    data: tuple[str, ...] = Field(min_length=1)
    """Names of data sets, whose folders are given when it is run; those of `planted` need none."""
    planted: dict[str, PlantedWorld] = Field(default_factory=dict)
    """Worlds that are generated."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Common to all rows."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Of graph, reward and experts, and of changes of the data."""
    resamples: int = Field(1000, ge=10)
    """Draws of the two-way bootstrap over users and prompts."""
    parts: dict[str, PartSettings] = Field(min_length=1)
    """By name."""

    @model_validator(mode="after")
    def _check(self) -> StudySettings:
        if not set(self.planted) <= set(self.data):
            raise ValueError(f"planted world {min(set(self.planted) - set(self.data))!r} is not among the study's data")
        for name, part in self.parts.items():
            taken = set(part.rows) & set(ENDS)
            if taken:
                raise ValueError(
                    f"part {name!r} has a row {min(taken)!r}, which is what stands beside its rows: name it otherwise"
                )
            unknown = set(part.data or ()) - set(self.data)
            if unknown:
                raise ValueError(f"part {name!r} names data that the study has not: {', '.join(sorted(unknown))}")
        return self


@dataclass(frozen=True)
class Cell:
    """One fit of a study."""

    part: str
    data: str
    row: str
    value: Any
    """Of the part's sweep; None without one."""
    seed: int
    settings: FitSettings
    change: ChangeSettings


def cells(study: StudySettings) -> Iterator[Cell]:
    """Every fit of a study, in the order of its tables. Some may be the same fit.

    Raises:
        ConfigError: A row's settings cannot be used.
    """
    for part_name, part in study.parts.items():
        for data in part.data or study.data:
            for row_name, row in part.rows.items():
                for value in part.sweep.values if part.sweep else (None,):
                    for seed in part.seeds or study.seeds:
                        settings, change = _resolve(study, part, row, value, seed, where=f"{part_name}, {row_name}")
                        yield Cell(part_name, data, row_name, value, seed, settings, change)


def _resolve(
    study: StudySettings, part: PartSettings, row: RowSettings, value: Any, seed: int, *, where: str
) -> tuple[FitSettings, ChangeSettings]:
    seeds = {name: {"seed": seed} for name in ("graph", "reward", "experts")}
    values = _merged(_merged(study.settings, row.settings), seeds)
    change, overrides = row.change, []
    if part.sweep is not None:
        key = part.sweep.key
        if part.sweep.changes_choices:
            given = change.model_dump(exclude_defaults=True) | {key.removeprefix(_CHANGE): value}
            change = validate_settings(ChangeSettings, given, where=where)
        else:
            overrides = [f"{key}={json.dumps(value)}"]
    checked = validate_settings(FitSettings, values, where=where)
    return (load_settings(FitSettings, values=values, overrides=overrides) if overrides else checked), change


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over each other: a copy, all the way down, for rows and parts share what the study gives them."""
    merged = dict(copy.deepcopy(values))
    for key, value in over.items():
        own = merged.get(key)
        if isinstance(own, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(own, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
