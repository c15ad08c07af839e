"""The search space: a YAML that says what a trial trains, which settings are searched, and how long a trial may go on.

Every key is a dotted key of `FitSettings`, checked with its values before anything runs. `*` in the place of a candidate's name
stands for all candidates of the graph stage.
"""

from __future__ import annotations

import difflib
import math
from typing import Annotated, Any, Literal, get_args, get_origin

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from penchant.config import Settings, load_settings
from penchant.errors import ConfigError
from penchant.runtime.training.config import FitSettings

Value = bool | int | float | str | None
Choice = Literal["one_standard_error", "most_accurate"]
Stage = Literal["graph", "reward", "experts"]
"""The stage that a trial ends with: its steps are what ASHA counts. A space with `stage: reward` ends with the experts, or with
the frozen phase where there are none."""

_SEARCHABLE = {"graph": ("graph",), "reward": ("graph", "reward", "experts")}
STEPS = {"graph": "graph.candidates.*.optimization.max_steps", "reward": "reward.steps", "experts": "experts.steps"}
"""Where a stage's steps are set."""


class Parameter(Settings):
    """What a searched setting may be: one of `choice`, `uniform`, `log_uniform` and `integer`."""

    choice: tuple[Value, ...] | None = Field(None, min_length=1)
    """Any of these values."""
    uniform: tuple[float, float] | None = None
    """A number between two, both included."""
    log_uniform: tuple[float, float] | None = None
    """The same, searched on a logarithmic scale."""
    integer: tuple[int, int] | None = None
    """A whole number between two, both included."""

    @model_validator(mode="after")
    def _check(self) -> Parameter:
        given = {name: value for name, value in self if value is not None}
        if len(given) != 1:
            raise ValueError("give one of choice, uniform, log_uniform and integer")
        for name, bounds in given.items():
            if name != "choice" and not bounds[0] < bounds[1]:
                raise ValueError(f"{name} goes from {bounds[0]} to {bounds[1]}")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError("log_uniform starts above 0")
        return self

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        if self.choice is not None:
            return CategoricalDistribution(self.choice)
        if self.integer is not None:
            return IntDistribution(*self.integer)
        low, high = self.uniform or self.log_uniform or (0.0, 1.0)
        return FloatDistribution(low, high, log=self.log_uniform is not None)

    def options(self) -> list[Value] | None:
        """Every value, where they can be counted."""
        if self.choice is not None:
            return list(self.choice)
        return None if self.integer is None else list(range(self.integer[0], self.integer[1] + 1))

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them."""
        options = self.options()
        if options is not None:
            return any(value == option and isinstance(value, bool) == isinstance(option, bool) for option in options)
        low, high = self.uniform or self.log_uniform or (0.0, 1.0)
        return isinstance(value, int | float) and low <= value <= high

    def probes(self) -> list[Value]:
        """Values that show whether all of them can be used."""
        if self.choice is not None:
            return list(self.choice)
        if self.integer is not None:
            return list(self.integer)
        low, high = self.uniform or self.log_uniform or (0.0, 1.0)
        return [low, high, low + (high - low) / math.e]


class AshaSettings(Settings):
    """Asynchronous successive halving (Li et al., MLSys 2020): at each rung only the best 1 / factor of the trials go on."""

    steps: int | None = Field(None, ge=1)
    """Steps of a trial that is never stopped; by default those of a fit."""
    first: int = Field(8, ge=1)
    """Steps before the first rung; each rung is `factor` times further than the one before."""
    factor: float = Field(3.0, gt=1)
    """Of the trials at a rung, 1 / factor go on."""


class ResourceSettings(Settings):
    """What each worker of a trial gets. Trials run side by side as long as there is enough for one more."""

    cpus: int = Field(1, ge=1)
    """Cores, and threads."""
    gpus: float | None = Field(None, ge=0)
    """GPUs, or a part of one; by default one where there are any."""


class Space(Settings):
    """A search space."""

    stage: Literal["graph", "reward"]
    """How far a trial goes: the graph stage alone, or the reward phases over a graph that trials of the same graph share."""
    parameters: dict[str, Parameter] = Field(min_length=1)
    """What is searched, by dotted key."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of every trial, which the best keeps."""
    trial: dict[str, Any] = Field(default_factory=dict)
    """Settings of the trials alone, such as more validation prompts; the best does not keep them."""
    objectives: tuple[Literal["accuracy", "parameters", "step_seconds"], ...] = Field(("accuracy",), min_length=1)
    """`accuracy` on validation comparisons (more is better), trained `parameters`, seconds a step (less is better)."""
    choose: Choice = "one_standard_error"
    """Which trial becomes `best.yaml`. `one_standard_error`: of those within one standard error of the most accurate, the one
    that trains fewest parameters, for the most accurate of many is partly lucky. Or `most_accurate`."""
    asha: AshaSettings = AshaSettings()
    """Stopping poor trials early, by accuracy."""
    resources: ResourceSettings = ResourceSettings()
    """What a trial gets."""
    trials: int = Field(16, ge=1)
    """Trials, unless the command says otherwise."""
    max_failures: int = Field(1, ge=0)
    """Times that a failed trial is tried again before it is given up."""
    seed: int = Field(0, ge=0)
    """Fixes what the search proposes. Trials have the settings' own seeds."""

    @model_validator(mode="after")
    def _check(self) -> Space:
        if "accuracy" not in self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives are accuracy and, once each, parameters or step_seconds")
        return self


def load_space(path: str) -> Space:
    """Reads a space.

    Raises:
        ConfigError: It cannot be read, or a key, a setting or a value in it cannot be used; the message names it.
    """
    space = load_settings(Space, path)
    for key, parameter in space.parameters.items():
        _check_parameter(space, key, parameter, where=path)
    return space


def _check_parameter(space: Space, key: str, parameter: Parameter, *, where: str) -> None:
    field = field_at(key, where=where)
    if key.split(".")[0] not in _SEARCHABLE[space.stage]:
        groups = " and ".join(f"{name}.*" for name in _SEARCHABLE[space.stage])
        raise ConfigError(
            f"{key!r} cannot be searched with stage: {space.stage}.",
            where=where,
            fix=f"Trials share the data and the base's features: search {groups}, and put the rest under settings.",
        )
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
    for value in parameter.probes():
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise ConfigError(f"{key}: {said} (got {value!r}).", where=where, fix="Change the values.") from None


def field_at(key: str, *, where: str) -> FieldInfo:
    """The field of `FitSettings` under a dotted key.

    Raises:
        ConfigError: There is none, or it is a group of settings.
    """
    model: type[Settings] | None = FitSettings
    parts, field = key.split("."), None
    number = 0
    while number < len(parts):
        if model is None:
            raise ConfigError(f"{'.'.join(parts[:number])!r} has nothing in it.", where=where, fix=f"Search it, not {key!r}.")
        part = parts[number]
        field = model.model_fields.get(part)
        if field is None:
            close = difflib.get_close_matches(part, model.model_fields, n=1)
            known = f"Known here: {', '.join(model.model_fields)}."
            fix = f"Did you mean {'.'.join([*parts[:number], close[0], *parts[number + 1 :]])!r}?" if close else known
            raise ConfigError(f"There is no setting {key!r}.", where=where, fix=fix)
        number += 1
        model, named = _group(field.annotation)
        number += named  # the name of a candidate, or *
    if model is not None or field is None or number > len(parts):
        raise ConfigError(f"{key!r} is a group of settings.", where=where, fix="Name one setting in it.")
    return field


def _group(annotation: Any) -> tuple[type[Settings] | None, bool]:
    """The settings that an annotation holds, if any, and whether by name."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation, False
    if get_origin(annotation) is dict:
        return _group(get_args(annotation)[1])[0], True
    return None, False
