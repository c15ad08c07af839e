"""Strict settings: YAML files, dotted overrides, and errors that name the key.

Each component keeps its own settings model beside it (`graph/config.py`, `reward/config.py`, ...), as a `Settings` subclass.
A default lives once, on its field.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeGuard, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from penchant.errors import ConfigError


class Settings(BaseModel):
    """Base of every settings model: unknown keys are refused and instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    preset_key: ClassVar[str | None] = None
    """The setting that may name a preset."""

    @classmethod
    def preset(cls, chosen: Any) -> dict[str, Any]:
        """Values that lie beneath those given, where `preset_key` is `chosen`; none but where a model has presets."""
        return {}

    @classmethod
    def with_preset(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values laid over those of the preset that they name."""
        return _laid_over(cls, cls.preset(values.get(cls.preset_key or "")), values)

    @model_validator(mode="before")
    @classmethod
    def _lay_over_preset(cls, values: Any) -> Any:
        return cls.with_preset(values) if cls.preset_key and isinstance(values, Mapping) else values


SettingsT = TypeVar("SettingsT", bound=Settings)


def load_settings(
    model: type[SettingsT],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    values: dict[str, Any] | None = None,
    given: dict[str, Any] | None = None,
) -> SettingsT:
    """Builds a settings model from a YAML file (or plain values) and `key.sub=value` overrides; overrides win.

    Settings that go by name, as `graph.candidates`, are those alone that the file or the values give. An override of one of them
    leaves the others, the default ones where none are given; `*` in the place of the name stands for all of them. A preset that
    the settings name is beneath them all.

    Args:
        values: They stay as they are.
        given: Values by dotted key that win over all of these: what options say. They are taken as they are, where an override
            is read as YAML, in which a path may mean something else. One that is None is not given.

    Raises:
        ConfigError: The file is missing or is not a YAML mapping, a key is unknown, or a value has the wrong type.
    """
    values = read_yaml(Path(path)) if path is not None else copy.deepcopy(values or {})
    choosing = [override for override in overrides if override.partition("=")[0].partition(".")[0] == model.preset_key]
    for override in choosing:
        _apply_override(model, values, override)
    values = model.with_preset(values)
    for override in overrides:
        if override not in choosing:
            _apply_override(model, values, override)
    for key, value in (given or {}).items():
        if value is not None:
            _set(values, key.split("."), value, where=f"{key}={value}")
    return validate_settings(model, values, where=str(path) if path is not None else "the settings")


def validate_settings(model: type[SettingsT], values: Any, *, where: str = "the settings") -> SettingsT:
    """Builds a settings model from plain values.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(error, model, where) from None


def dump_settings(settings: Settings) -> str:
    """The settings as YAML that `load_settings` reads back to an equal model."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; empty for an empty file.

    Raises:
        ConfigError: It is missing or is not a YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("There is no such file.", where=str(path), fix="Check the path given to --config.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"It cannot be read ({error}).", where=str(path), fix="Give a YAML file.") from None
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"It is not valid YAML ({detail}).", where=str(path), fix="Mend the file.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"It holds a {type(values).__name__}, not a mapping.", where=str(path), fix="Write 'key: value' lines.")
    return values


def _apply_override(model: type[Settings], values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{override!r} is not an override.", where="command line", fix="Write key=value, as in graph.dim=64.")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        value = text
    for parts in _reached(model, values, key.split("."), where=override):
        _set(values, parts, value, where=override)


def _reached(model: type[BaseModel], values: dict[str, Any], parts: list[str], *, where: str) -> list[list[str]]:
    """The keys that an override's key stands for. Where it goes below settings by name of which none are given, the default ones
    are put among the values, or one of them would be all that there is."""
    node = values
    for number, part in enumerate(parts[:-1]):
        field = model.model_fields.get(part)
        if field is None:
            break
        kind = field.annotation
        if get_origin(kind) is dict and _is_settings(get_args(kind)[1]):
            default = {} if field.is_required() else field.get_default(call_default_factory=True)
            named = node.setdefault(part, {name: each.model_dump(mode="json") for name, each in default.items()})
            return _each_named(named, parts, number + 1, where=where) if isinstance(named, dict) else [parts]
        node = node.setdefault(part, {})
        if not _is_settings(kind) or not isinstance(node, dict):
            break
        model = kind
    return [parts]


def _each_named(named: dict[str, Any], parts: list[str], at: int, *, where: str) -> list[list[str]]:
    """The key once for each of the settings by name that it means."""
    group, name, rest = ".".join(parts[:at]), parts[at], parts[at + 1 :]
    if name == "*":
        if not rest:
            raise ConfigError(f"{group}.* is all of them at once.", where=where, fix=f"Name one setting: {group}.*.KEY=VALUE.")
        return [[*parts[:at], each, *rest] for each in named]
    if rest and name not in named:
        add = f"Or add it whole: {group}.{name}={{...}}."
        raise ConfigError(f"There is no {name!r} in {group}.", where=where, fix=f"{_meant(name, list(named))} {add}")
    return [parts]


def _laid_over(model: type[BaseModel], beneath: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values over others, group by group; settings that go by name are those alone of the values, where these have any."""
    laid = dict(beneath)
    for key, value in values.items():
        field, below = model.model_fields.get(key), laid.get(key)
        if field is not None and _is_settings(field.annotation) and isinstance(value, Mapping) and isinstance(below, Mapping):
            value = _laid_over(field.annotation, below, value)
        laid[key] = value
    return laid


def _is_settings(kind: Any) -> TypeGuard[type[Settings]]:
    return isinstance(kind, type) and issubclass(kind, Settings)


def _set(values: dict[str, Any], parts: Sequence[str], value: Any, *, where: str) -> None:
    """Puts a value under the parts of a dotted key."""
    *parents, leaf = parts
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{parent!r} is a value, not a group of settings.", where=where, fix="Check the key.")
        node = child
    node[leaf] = value


def _explain(error: ValidationError, model: type[Settings], where: str) -> ConfigError:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = list(_model_at(model, location[:-1])[0].model_fields)
        return ConfigError(f"There is no setting {key!r}.", where=where, fix=_meant(location[-1], known))
    if first["type"].startswith("union_tag"):  # one of several groups of settings, which one of its own keys names
        name, known = first["ctx"]["discriminator"].strip("'"), list(_model_at(model, location)[1])
        tag = f"{key}.{name}"
        if first["type"] == "union_tag_not_found":
            return ConfigError(f"{tag!r} is missing.", where=where, fix=f"Say which it is: {', '.join(known)}.")
        given = first["ctx"]["tag"]
        return ConfigError(f"{tag}: there is no {given!r}.", where=where, fix=_meant(given, known))
    if first["type"] == "missing":
        return ConfigError(f"{key!r} is missing.", where=where, fix=f"Add it there, or give {key}=VALUE.")
    message = first["msg"].removeprefix("Value error, ")
    # A whole group of settings is not shown: there may be a store's password in it.
    got = "" if isinstance(first["input"], dict | BaseModel) else f" (got {first['input']!r})"
    return ConfigError(f"{key + ': ' if key else ''}{message}{got}.", where=where, fix="Change the value.")


def _meant(wrong: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wrong, known)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else f"Known here: {', '.join(known)}."


def _model_at(model: type[BaseModel], location: list[str]) -> tuple[type[BaseModel], dict[str, type[BaseModel]]]:
    """The model nested at a location, or the nearest above it; and by name those of which one may stand there."""
    options: dict[str, type[BaseModel]] = {}
    for part in location:
        field = model.model_fields.get(part)
        if part in options:
            model, options = options[part], {}
        elif field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
        elif field is not None and isinstance(field.discriminator, str):
            # One of several models, of which the next part of the location names one.
            options = {kind.model_fields[field.discriminator].default: kind for kind in get_args(field.annotation)}
    return model, options
