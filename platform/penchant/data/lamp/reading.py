"""Reads and validates a LaMP folder: LaMP's own questions and outputs, or OPPU's two files of users.

Everything is checked before any work: what is wrong is told with file, task, user and field. Reading leaves nothing
behind on disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from penchant.artifacts import refuse_uri
from penchant.data.lamp.findings import Findings
from penchant.data.lamp.histories import Item, LampData, LampUser, Query, oldest_first, seen_at
from penchant.data.lamp.schema import LampItem, OutputsRecord, QuestionRecord, UserRecord
from penchant.data.lamp.tasks import LampTask, is_named
from penchant.data.schema import Problem
from penchant.errors import DataError

OPPU_FILES = {"targets": "user_top_100_history.json", "others": "user_others.json"}
LAMP_PARTS = {"targets": "dev", "others": "train"}

RecordT = TypeVar("RecordT", bound=BaseModel)
Users = dict[str, LampUser]


def read_lamp(folder: str | Path, task: LampTask) -> LampData:
    """Reads a folder of one task.

    Raises:
        DataError: A file is missing or unreadable, or a record breaks the contract; the first problems are told.
    """
    data, findings = _read(Path(folder), task)
    findings.raise_if_failed(str(folder))
    assert data is not None
    return data


def examine_lamp(folder: str | Path, task: LampTask) -> tuple[LampData | None, list[Problem]]:
    """The same, with every problem; the data are None where one of them is an error.

    Raises:
        DataError: A file is missing, or is not JSON.
    """
    data, findings = _read(Path(folder), task)
    return data, findings.listed()


def _read(folder: Path, task: LampTask) -> tuple[LampData | None, Findings]:
    findings = Findings(task)
    read = _read_users if _has_oppu_files(folder) else _read_questions
    targets, others = (read(folder, part, task, findings) for part in ("targets", "others"))
    both = sorted(targets.keys() & others.keys())
    for user in both:
        message = "is a target and one of the others"
        fix = "It is left out of the others, so that the task adapter has not seen it."
        findings.add("both", str(folder), message, fix, user=user, severity="warning")
        del others[user]
    if both and not others:
        fix = "Give users for the task adapter who are not asked about."
        findings.add("no_others", str(folder), "every one of the others is a target, too", fix)
    if findings.failed:
        return None, findings
    return LampData(task, targets, others, tuple(findings.listed())), findings


def _has_oppu_files(folder: Path) -> bool:
    refuse_uri(folder)
    if not folder.is_dir():
        raise DataError("There is no such folder.", where=str(folder), fix="Give a folder with one task's files.")
    own = [f"{part}_{name}.json" for part in LAMP_PARTS.values() for name in ("questions", "outputs")]
    for files in (list(OPPU_FILES.values()), own):
        there = [(folder / file).is_file() for file in files]
        if all(there):
            return files is not own
        if any(there):
            missing = ", ".join(file for file, found in zip(files, there, strict=True) if not found)
            raise DataError(f"There is no {missing}.", where=str(folder), fix="Put it beside the others.")
    held = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise DataError(
        "There are no LaMP files.",
        where=str(folder),
        fix=f"Give {' and '.join(OPPU_FILES.values())} (OPPU's layout) or {', '.join(own)} (LaMP's own). It holds: {held}.",
    )


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"It cannot be read as JSON ({error}).", where=str(path), fix="It may be cut short.") from None


def _records(path: Path, model: type[RecordT], identity: str, findings: Findings) -> Iterator[tuple[int, str, RecordT]]:
    """The valid records of a file, with their row and id; the others are noted."""
    rows = _load(path)
    if not isinstance(rows, list) or not rows:
        held = "an empty list" if rows == [] else f"a {type(rows).__name__}"
        findings.add("no_records", path.name, f"the file holds {held}", "It must be a list with a record each.")
        return
    first: dict[str, int] = {}
    for row, raw in enumerate(rows):
        named = raw.get(identity) if isinstance(raw, Mapping) else None
        try:
            record = model.model_validate(raw)
        except ValidationError as error:
            findings.add_invalid(error, path.name, row, raw, None if named is None else str(named))
            continue
        key = getattr(record, identity)
        if key in first:
            message = f"field {identity!r}: record {first[key]} has it as well"
            findings.add("repeated_id", path.name, message, "Give each an id of its own.", row=row, value=key)
            continue
        first[key] = row
        yield row, key, record


def _read_users(folder: Path, part: str, task: LampTask, findings: Findings) -> Users:
    """OPPU's layout: a record is a user, with the history and the questions that come after it."""
    path = folder / OPPU_FILES[part]
    users: Users = {}
    asked: dict[str, str] = {}
    for row, user, record in _records(path, UserRecord[task.item], "user_id", findings):  # type: ignore[name-defined]
        notes = _Notes(findings, path.name, row, user)
        items = _history(record.profile, notes)
        queries: list[Query] = []
        for query in record.query:
            if asked.setdefault(query.id, user) != user or query.id in {other.id for other in queries}:
                notes.add("repeated_id", f"query {query.id!r}: another query has this id", "Give each an id of its own.")
            seen = seen_at(items, query.date)
            queries.append(_query(query.id, query.input, query.gold, seen, items, task, notes))
        if not queries and part == "targets":
            notes.add("no_query", "field 'query' is empty", "Nothing can be evaluated on this user.", severity="warning")
        users[user] = LampUser(user, items, tuple(queries))
    return users


def _read_questions(folder: Path, part: str, task: LampTask, findings: Findings) -> Users:
    """LaMP's own layout: a record is a question, with the history that it may see; its answer is in another file."""
    name = LAMP_PARTS[part]
    path = folder / f"{name}_questions.json"
    golds = _golds(folder / f"{name}_outputs.json", task, findings)
    asked: dict[str, list[tuple[int, QuestionRecord[LampItem]]]] = {}
    for row, identity, record in _records(path, QuestionRecord[task.item], "id", findings):  # type: ignore[name-defined]
        if golds and identity not in golds:
            message = f"question {identity!r} has no answer in {name}_outputs.json"
            findings.add("no_gold", path.name, message, "Add it.", row=row, user=record.user_id)
            continue
        asked.setdefault(record.user_id or identity, []).append((row, record))
    users = {}
    for user, questions in asked.items():
        # A user's later question continues the history of an earlier one.
        questions.sort(key=lambda question: len(question[1].profile))
        together: dict[str, LampItem] = {}
        for row, record in questions:
            for item in record.profile:
                if together.setdefault(item.id, item) != item:
                    message = f"item {item.id!r} is told in two ways"
                    findings.add("repeated_id", path.name, message, "Give each an id of its own.", row=row, user=user)
        items = _history(list(together.values()), _Notes(findings, path.name, questions[0][0], user))
        queries = []
        for row, record in questions:
            notes = _Notes(findings, path.name, row, user)
            given = {item.id for item in record.profile}
            seen = seen_at(items[: len(given)], record.date)
            if given != {item.id for item in items[: len(given)]}:
                notes.add(
                    "no_prefix",
                    f"question {record.id!r}: its profile is not the beginning of the user's history",
                    "Without user_id, each question stands for a user of its own.",
                )
            queries.append(_query(record.id, record.input, golds.get(record.id, ""), seen, items, task, notes))
        users[user] = LampUser(user, items, tuple(queries))
    return users


def _golds(path: Path, task: LampTask, findings: Findings) -> dict[str, str]:
    raw = _load(path)
    try:
        record = OutputsRecord.model_validate(raw)
    except ValidationError as error:
        findings.add_invalid(error, path.name, 0, raw, None)
        return {}
    if not is_named(task, record.task):
        message = f"field 'task' says {record.task!r}"
        findings.add("wrong_task", path.name, message, "Name the task that the files are of.")
    golds: dict[str, str] = {}
    for answer in record.golds:
        if answer.id in golds:
            message = f"answer {answer.id!r}: field 'id' is there twice"
            findings.add("repeated_id", path.name, message, "Keep one.")
        golds[answer.id] = answer.output
    return golds


class _Notes:
    """Findings about one user's record."""

    def __init__(self, findings: Findings, file: str, row: int, user: str) -> None:
        self.findings, self.file, self.row, self.user = findings, file, row, user

    def add(self, kind: str, message: str, fix: str, **more: Any) -> None:
        self.findings.add(kind, self.file, message, fix, row=self.row, user=self.user, **more)


def _history(records: Sequence[LampItem], notes: _Notes) -> tuple[Item, ...]:
    task = notes.findings.task
    items = [Item(record.id, _fields(record), record.date) for record in records]
    if len({item.id for item in items}) < len(items):
        notes.add("repeated_id", "two items of the profile have the same id", "Give each an id of its own.")
    if len({item.date is None for item in items}) > 1:
        notes.add("some_dates", "field 'date': some items have one and some have none", "Give it to all of them or to none.")
    if not items:
        notes.add("no_item", "field 'profile' is empty", "Nothing can be fitted to this user.", severity="warning")
    if task.kind == "classification" and task.answer != "citation":
        for item in items:
            if (label := item.fields[task.answer]) not in task.labels:
                message = f"item {item.id!r}, field {task.answer!r} is none of the task's labels"
                fix = "It is shown as it is, and not trained on."
                notes.add("odd_label", message, fix, value=label, severity="warning")
    return oldest_first(items)


def _fields(record: LampItem) -> dict[str, str]:
    return record.model_dump(exclude={"id", "date"}, exclude_none=True)


def _query(identity: str, text: str, gold: str, seen: int, items: Sequence[Item], task: LampTask, notes: _Notes) -> Query:
    gold = gold.strip()
    fields = task.read_question(text)
    if fields is None:
        message = f"query {identity!r}, field 'input' is not worded as {task.name}'s questions are"
        notes.add("odd_question", message, "Check that --task is the task of these files.", value=text)
    if task.labels and gold and gold not in task.labels:
        message = f"query {identity!r}, field 'gold' is none of the task's labels"
        notes.add("odd_gold", message, f"One of: {', '.join(task.labels)}.", value=gold)
    subject = set((fields or {}).values())
    if any(subject <= set(item.fields.values()) for item in items[:seen]) and subject and task.name != "LaMP_1":
        message = f"query {identity!r} is about an item of the user's own history"
        notes.add("leak", message, "Its answer can be looked up.", severity="warning")
    return Query(identity, text, fields or {}, gold, seen)
