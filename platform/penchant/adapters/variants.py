"""The ways of answering that are compared: what a prompt shows of the past, and whether the user's adapter takes part.

A name says it: `base`, `rag-2`, `pag`, `oppu`, `oppu+rag-1`, `oppu+pag`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from penchant.adapters.config import AdapterSettings, LampSettings
from penchant.adapters.tasks.config import PromptSettings
from penchant.adapters.tasks.prompts import PROMPTS
from penchant.adapters.tasks.slices import Part
from penchant.data.lamp import LampData, LampTask
from penchant.errors import ConfigError

_NAMES = "base, rag-K, pag, pag-written, oppu, oppu+rag-K, oppu+pag, oppu+pag-written"
_NAME = re.compile(r"base|(?P<oppu>oppu)?(?:(?:^|(?<=oppu)\+)(?:rag-(?P<k>[1-9]\d*)|pag(?:-(?P<profile>template|written))?))?")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of answering."""

    name: str
    prompts: PromptSettings
    """What of the past stands in the prompts. The task base was fitted with the same, as in the paper."""
    adapter: AdapterSettings | None = None
    """The users' own adapters; None: the task base answers."""
    history: Part = "all"
    """What the adapters are fitted on."""

    @property
    def folder(self) -> str:
        """Where in a run's folder the adapters are."""
        assert self.adapter is not None
        return f"{self.prompts.name}/{self.adapter.kind}{'' if self.history == 'all' else f'-{self.history}'}"


def find_variant(name: str, settings: LampSettings) -> Variant:
    """The variant of a name; what the name leaves open (retriever, history's format, adapter) is as in the settings.

    Raises:
        ConfigError: It is no variant's name.
    """
    found = _NAME.fullmatch(name)
    if not name or found is None:
        raise ConfigError(f"There is no variant {name!r}.", where="rows", fix=f"There are {_NAMES}.")
    profile = "none" if "pag" not in name else found["profile"] or "template"
    update = {"retrieved": int(found["k"] or 0), "profile": profile}
    prompts = settings.prompts.model_copy(update=update)
    return Variant(name=name, prompts=prompts, adapter=settings.adapter if found["oppu"] else None)


def table_rows(names: Sequence[str], settings: LampSettings) -> list[Variant]:
    """The variants of a table: those asked for, each once, after the task base, which they are compared with.

    Raises:
        ConfigError: A name is no variant's.
    """
    return [find_variant(name, settings) for name in dict.fromkeys(["base", *names])]


def kinds_study(settings: LampSettings) -> list[Variant]:
    """Every kind of PEFT, with the rest of the settings as they are."""
    rows = table_rows([], settings)
    for kind in ("lora", "ia3", "prompt_tuning"):
        layers = None if kind == "prompt_tuning" else settings.adapter.layers
        adapter = settings.adapter.model_copy(update={"kind": kind, "layers": layers})
        rows.append(Variant(name=f"oppu {kind}", prompts=find_variant("oppu", settings).prompts, adapter=adapter))
    return rows


def shift_study(settings: LampSettings) -> list[Variant]:
    """Adapters of the items nearest in time to the queries, of as many that are furthest, and of all."""
    own = find_variant("oppu", settings)
    parts: tuple[tuple[str, Part], ...] = (("all items", "all"), ("latest half", "near"), ("oldest half", "far"))
    return table_rows([], settings) + [
        Variant(name=f"oppu, {words}", prompts=own.prompts, adapter=own.adapter, history=part) for words, part in parts
    ]


def format_study(settings: LampSettings, data: LampData, retrieved: int) -> list[Variant]:
    """Retrieval, and adapters with retrieval, that show all of a past item, only what it is about, or only what was answered.

    Raises:
        ConfigError: Items of the task have one field alone.
    """
    rows = table_rows([], settings)
    for words, fields in _formats(data).items():
        prompts = settings.prompts.model_copy(update={"retrieved": retrieved, "profile": "none", "history_fields": fields})
        for name, adapter in (("rag", None), ("oppu+rag", settings.adapter)):
            rows.append(Variant(name=f"{name}-{retrieved}, {words}", prompts=prompts, adapter=adapter))
    return rows


def _formats(data: LampData) -> dict[str, tuple[str, ...] | None]:
    prompts = PROMPTS[data.task.name]
    item = next((item for user in data.targets.values() for item in user.items), None)
    about, answer = ((), "") if item is None else (prompts.item_subject(item), prompts.item_target(item))
    if not about:
        raise ConfigError(
            f"A past item of {data.task.name} is its {data.task.answer} alone: there is one format.",
            where="study",
            fix="Choose another study.",
        )
    return {"all": None, "+".join(about): about, answer: (answer,)}


def check_answers(task: LampTask, settings: LampSettings, rows: Sequence[Variant]) -> LampSettings:
    """The settings with the task's labels, if the base can answer the task.

    Raises:
        ConfigError: It has a label head where text is to be written, or where past items hold no label; or it has none and
            is to write profiles.
    """
    if settings.base.answers == "text":
        return settings
    if any(row.prompts.profile == "written" for row in rows):
        raise ConfigError("A base with a label head writes no profiles.", where="rows", fix="Leave pag-written out.")
    if task.kind == "generation":
        raise ConfigError(
            f"{task.name} asks for a text, and the base has a label head.",
            where="base.answers",
            fix="Give a causal language model: base.answers=text base.name=FOLDER.",
        )
    if task.answer == "citation" and any(row.adapter for row in rows):
        raise ConfigError(
            "Past papers hold no label that an adapter could learn.", where="base.answers", fix="Use base.answers=text."
        )
    base = settings.base.model_copy(update={"labels": settings.base.labels or task.labels})
    return settings.model_copy(update={"base": base})
