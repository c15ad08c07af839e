"""What is wrong in LaMP's files, told with file, task, user and field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import ValidationError

from penchant.data.lamp.tasks import LampTask
from penchant.data.schema import LISTED_PER_KIND, Problem
from penchant.errors import DataError

_SHOWN = 5
_LONGEST = 80


class Findings:
    """Collects problems: of each kind the first are listed and the rest counted."""

    def __init__(self, task: LampTask) -> None:
        self.task = task
        self._listed: dict[str, list[Problem]] = {}
        self._count: Counter[str] = Counter()

    def add(
        self,
        kind: str,
        file: str,
        message: str,
        fix: str,
        *,
        row: int | None = None,
        user: str | None = None,
        value: Any = None,
        severity: Literal["error", "warning"] = "error",
    ) -> None:
        """Notes one problem of a file's record `row`."""
        self._count[kind] += 1
        listed = self._listed.setdefault(kind, [])
        if len(listed) == LISTED_PER_KIND:
            return
        who = f", user {user!r}" if user is not None else ""
        shown = None if value is None else str(value)[:_LONGEST]
        listed.append(Problem(kind, file, f"{self.task.name}{who}: {message}", fix, row=row, value=shown, severity=severity))

    def add_invalid(self, error: ValidationError, file: str, row: int, record: Any, user: str | None) -> None:
        """Notes what a record's model refuses, a problem a field."""
        for detail in error.errors():
            place, field = _place(detail["loc"], record)
            what = detail["msg"].removeprefix("Value error, ")
            missing = detail["type"] == "missing"
            words = f"{place}there is no field {field!r}" if missing else f"{place}field {field!r}: {what}"
            fix = "Add it." if missing else "Mend the value, or take the record out."
            value = None if missing else detail["input"]
            self.add("missing_field" if missing else "bad_field", file, words, fix, row=row, user=user, value=value)

    def listed(self) -> list[Problem]:
        """Every problem, errors first."""
        found = []
        for kind, problems in self._listed.items():
            rest = self._count[kind] - len(problems)
            found.extend([*problems[:-1], replace(problems[-1], count=rest + 1)])
        return sorted(found, key=lambda problem: problem.severity)

    @property
    def failed(self) -> bool:
        """Whether there is an error among them."""
        return any(problems[0].severity == "error" for problems in self._listed.values())

    def raise_if_failed(self, where: str) -> None:
        """Raises the first errors.

        Raises:
            DataError: There is at least one.
        """
        errors = [problem for problem in self.listed() if problem.severity == "error"]
        if errors:
            shown = "\n  ".join(map(str, errors[:_SHOWN]))
            total = sum(problem.count for problem in errors)
            more = "\n  ... `penchant data lamp check` lists them all." if len(errors) > _SHOWN else ""
            raise DataError(f"{total:,} problem{'s' if total > 1 else ''} in the data:\n  {shown}{more}", where=where)


def _place(location: tuple[int | str, ...], record: Any) -> tuple[str, str]:
    """Where in a record a field is, in words, and its name."""
    names = {"profile": "item", "query": "query", "golds": "answer"}
    match location:
        case (str(part), int(position), *rest) if part in names:
            entry = record[part][position]
            identity = entry.get("id") if isinstance(entry, Mapping) else None
            named = f" ({identity!r})" if identity is not None else ""
            return f"{names[part]} {position}{named}: ", ".".join(map(str, rest)) or part
    return "", ".".join(map(str, location)) or "record"
