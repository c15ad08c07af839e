"""From a space and what the search proposes to the settings of a trial, and of the fit that the best of them becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.backbone.loading import outline
from penchant.config import Settings, load_settings, validate_settings
from penchant.errors import ConfigError, PenchantError
from penchant.reward.experts import check_experts
from penchant.runtime.training.config import FitSettings
from penchant.runtime.tuning.space import STEPS, Space, Stage, Value


def base_settings(space: Space, config: str | Path | None, overrides: Sequence[str], *, where: str) -> FitSettings:
    """What every trial and the best have in common: defaults, the file, the space's `settings`, and the overrides, which win.

    Raises:
        ConfigError: A key or value cannot be used, or the space does not fit these settings.
    """
    own = load_settings(FitSettings, config)
    laid = validate_settings(FitSettings, lay_over(FitSettings, _plain(own), space.settings), where=f"{where}, settings")
    base = load_settings(FitSettings, values=_plain(laid), overrides=overrides)
    trial = validate_settings(FitSettings, lay_over(FitSettings, _plain(base), space.trial), where=f"{where}, trial")
    for method in (base.method, trial.method):
        if FitSettings.preset(method) and method != own.method:  # it would lie beneath settings that are all given already
            raise ConfigError(
                f"Method {method.name} is settings of its own, which a sweep starts from.",
                where=where,
                fix=f"Write `method: {method.name}` into a YAML, and give that as --config.",
            )
    _check_stage(space, base, where=where)
    return base


def lay_over(model: type[Settings], values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The values with others laid over them, group by group. What is no group of settings is replaced: also all candidates."""
    laid = dict(values)
    for key, value in over.items():
        field = model.model_fields.get(key)
        group = None if field is None else field.annotation
        if isinstance(group, type) and issubclass(group, Settings) and isinstance(value, Mapping):
            value = lay_over(group, laid[key], value)
        laid[key] = value
    return laid


def stage_of(space: Space, base: FitSettings) -> Stage:
    """The stage that every trial ends with."""
    if space.stage == "graph":
        return "graph"
    searched = space.parameters.get("experts.num_experts")
    options = None if searched is None else searched.options()
    return "experts" if any(options or [base.experts.num_experts]) else "reward"


def _check_stage(space: Space, base: FitSettings, *, where: str) -> None:
    if base.replaces_stages:
        raise ConfigError(
            f"A sweep is over Penchant's own settings, not over those of method {base.method.name}.",
            where=where,
            fix="Leave method out.",
        )
    if space.stage == "graph" and len(base.graph.candidates) > 1:
        raise ConfigError(
            f"A trial of the graph stage trains one encoder, and there are {', '.join(base.graph.candidates)}.",
            where=where,
            fix="Name one: settings: {graph: {candidates: {swept: {}}}}.",
        )
    if stage_of(space, base) == "graph" and space.asha.steps is None:
        by_epochs = [name for name, candidate in base.graph.candidates.items() if candidate.optimization.num_epochs]
        if by_epochs:
            raise ConfigError(
                f"Candidate {by_epochs[0]!r} is trained by epochs, and ASHA counts steps.",
                where=f"{where}, asha.steps",
                fix="Give the steps of a trial that is never stopped: num_epochs times the comparisons by batch_size.",
            )
    experts = space.parameters.get("experts.num_experts")
    options = experts.options() if experts else None
    if options and 0 in options and len(options) > 1:
        raise ConfigError(
            "Trials with experts and trials without look at different validation comparisons.",
            where=f"{where}, experts.num_experts",
            fix="Leave 0 out, or sweep it by itself.",
        )
    searched = STEPS[stage_of(space, base)]
    if any(_same_key(key, searched) for key in space.parameters):
        raise ConfigError(f"{searched!r} is what ASHA decides on.", where=where, fix="Set asha.steps instead.")
    if stage_of(space, base) == "experts" and not trial_settings(space, base, {}).experts.valid_prompts:
        raise ConfigError(
            "Without validation prompts no trial can be judged.", where="experts.valid_prompts", fix="Give 8 or more."
        )
    if most_steps(space, base) < space.asha.first:
        raise ConfigError(
            f"The first rung, at {space.asha.first} steps, is beyond the {most_steps(space, base)} steps of a trial.",
            where=f"{where}, asha.first",
            fix="Give fewer.",
        )


def _same_key(key: str, pattern: str) -> bool:
    parts, own = key.split("."), pattern.split(".")
    return len(parts) == len(own) and all("*" in pair or pair[0] == pair[1] for pair in zip(parts, own, strict=True))


def most_steps(space: Space, base: FitSettings) -> int:
    """Steps of a trial that is never stopped."""
    return space.asha.steps or int(value_at(_plain(base), STEPS[stage_of(space, base)]))


def trial_settings(space: Space, base: FitSettings, values: Mapping[str, Value]) -> FitSettings:
    """A trial's settings.

    Raises:
        ConfigError: They don't fit together.
    """
    plain = lay_over(FitSettings, _plain(base), space.trial)
    set_value(plain, STEPS[stage_of(space, base)], most_steps(space, base))
    return _with(plain, values)


def best_settings(base: FitSettings, values: Mapping[str, Value]) -> FitSettings:
    """The settings of a fit with what a trial had, at the base's own budget."""
    return _with(_plain(base), values)


def _with(plain: dict[str, Any], values: Mapping[str, Value]) -> FitSettings:
    for key, value in values.items():
        set_value(plain, key, value)
    return validate_settings(FitSettings, plain, where="these values together")


def starting_point(space: Space, base: FitSettings) -> dict[str, Value] | None:
    """The base's own values, where the space holds them: the search starts from there, so that the best is no worse by its own
    measure."""
    plain = _plain(base)
    try:
        own = {key: value_at(plain, key) for key in space.parameters}
    except KeyError:
        return None
    return own if all(space.parameters[key].holds(value) for key, value in own.items()) else None


def value_at(plain: Mapping[str, Any], key: str) -> Any:
    """What is under a dotted key; with `*`, what all have there.

    Raises:
        KeyError: Nothing is there, or under `*` they differ.
    """
    head, _, rest = key.partition(".")
    if head == "*":
        found = [value_at(child, rest) for child in plain.values()]
        if any(value != found[0] for value in found):
            raise KeyError(key)
        return found[0]
    return value_at(plain[head], rest) if rest else plain[head]


def set_value(plain: dict[str, Any], key: str, value: Any) -> None:
    """Puts a value under a dotted key, in place; with `*`, under all."""
    head, _, rest = key.partition(".")
    for name in list(plain) if head == "*" else [head]:
        if rest:
            set_value(plain.setdefault(name, {}), rest, value)
        else:
            plain[name] = value


def _plain(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json")


@dataclass(frozen=True)
class Check:
    """Says why a trial with some values cannot be, before it is started."""

    space: Space
    base: FitSettings
    num_users: int
    """Seen users of the data set."""

    def __call__(self, values: Mapping[str, Value]) -> str | None:
        """The reason, or None."""
        try:
            settings = trial_settings(self.space, self.base, values)
            if stage_of(self.space, self.base) == "experts":
                check_experts(outline(settings.backbone), settings.experts, num_users=self.num_users)
        except PenchantError as error:
            return error.what
        return None
