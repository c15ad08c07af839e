"""The methods that there are, by name. A new one is a line in each of the two tables."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from penchant.config import Settings
from penchant.methods.baselines import LoRASettings, Oracle, OracleSettings, Uniform, UniformSettings
from penchant.methods.i2e import I2E, I2ESettings, Proxy, ProxySettings
from penchant.methods.lore import LoRe, LoReSettings
from penchant.methods.method import Method, Shapes
from penchant.methods.mixture import Mixture, MixtureSettings
from penchant.methods.pal import PALA, PALB, PALASettings, PALBSettings
from penchant.methods.vpl import VPL, VPLSettings
from penchant.reward.config import HeadSettings


class PenchantSettings(Settings):
    """Penchant's own: the graph, the frozen heads, the experts."""

    name: Literal["penchant"] = "penchant"


class CoPLSettings(Settings):
    """CoPL as published: the same stages, from the authors' settings in place of Penchant's (`runtime/training/copl.yaml`)."""

    name: Literal["copl"] = "copl"


METHODS: dict[str, type[Method]] = {  # those on the frozen base; `lora` trains the base, the two above the graph too
    "uniform": Uniform,
    "i2e": I2E,
    "proxy": Proxy,
    "vpl": VPL,
    "pal-a": PALA,
    "pal-b": PALB,
    "lore": LoRe,
    "mixture": Mixture,
    "oracle": Oracle,
}

MethodSettings = (
    PenchantSettings
    | CoPLSettings
    | UniformSettings
    | LoRASettings
    | I2ESettings
    | ProxySettings
    | VPLSettings
    | PALASettings
    | PALBSettings
    | LoReSettings
    | MixtureSettings
    | OracleSettings
)
"""Any method's own settings; `name` says whose."""

MethodOption = Annotated[
    MethodSettings,
    Field(discriminator="name"),
    BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
]
"""The same as a setting, where a name alone stands for its defaults."""


class MethodChoice(Settings):
    """A method by itself, as a run's settings hold it."""

    method: MethodOption = PenchantSettings()
    """Which method, and its own settings."""


def build_method(settings: MethodSettings, shapes: Shapes, head: HeadSettings) -> Method:
    """A fresh method of these settings."""
    kind: Any = METHODS[settings.name]
    return kind(settings, shapes, head)


def attribute_of(settings: MethodSettings) -> str | None:
    """The column of the users' table that a method knows of its users; None for most."""
    return getattr(settings, "attribute", None)
