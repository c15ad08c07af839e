"""Batch scoring: Parquet of (user, prompt, response) in, the same rows with scores out, file by file.

A file is cut into parts, which the workers score in any order; when all its parts are there they are joined, and the file
stands under its name. So one large file keeps all workers busy, and an interruption costs the parts that were in work::

    OUT/NAME.parquet           one for each input file, with its stamp
    OUT/.parts/STAMP/*.parquet parts of files that are not whole yet
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console

from penchant.artifacts import Manifest, file_fingerprint, fingerprint
from penchant.errors import DataError
from penchant.runtime.batch.config import BatchSettings
from penchant.runtime.batch.files import (
    InputFile,
    check_apart,
    find_files,
    has_stamp,
    join_files,
    open_parquet,
    parquet_writer,
    read_rows,
    remove_folder,
    stamped,
    write_table,
)
from penchant.runtime.batch.pool import Pool, choose_pool, load_model, work_off
from penchant.runtime.cluster import start_ray
from penchant.runtime.progress import progress_bar
from penchant.scoring.onboarded import list_onboarded, read_onboarded
from penchant.scoring.rows import ROW_COLUMNS, SCORE_FIELDS, check_columns, check_texts, score_rows
from penchant.storage import local_copy, open_location


@dataclass(frozen=True)
class Part:
    """Rows start..stop-1 of an input file."""

    path: str
    start: int
    stop: int
    out: str
    stamp: str


@dataclass(frozen=True)
class FileOfScores:
    """A file that is to be made."""

    source: InputFile
    schema: pa.Schema
    out: str
    stamp: str
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        """Of the input."""
        return self.parts[-1].stop if self.parts else 0


@dataclass(frozen=True)
class BatchSummary:
    """What was done, and what was there already."""

    rows: int
    files: int
    skipped_files: int
    seconds: float
    start_up_seconds: float
    """Of these, until the first part was begun: Ray, workers, models."""

    @property
    def rows_per_second(self) -> float:
        """Past start-up."""
        return self.rows / max(1e-9, self.seconds - self.start_up_seconds)


class PartScorer:
    """What a worker is: a model that scores parts of files.

    Args:
        data, out: The places that the parts' paths belong to.
    """

    def __init__(self, data: str, out: str, bundle: str, onboarded: str | None, settings: BatchSettings, pool: Pool) -> None:
        self.source, self.target = open_location(data)[0], open_location(out)[0]
        self.model = load_model(bundle, onboarded, settings, pool)

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """Scores a part and writes it; returns where it was written, how many rows it has, and when it was begun."""
        began = time.time()
        rows = read_rows(self.source, part["path"], part["start"], part["stop"])
        scored = score_rows(self.model, rows)
        write_table(self.target, part["out"], scored, stamped(scored.schema, part["stamp"]))
        return {"out": part["out"], "rows": len(rows), "began": began}


def score_tables(
    data: str,
    bundle: str,
    out: str,
    *,
    onboarded: str | None = None,
    settings: BatchSettings | None = None,
    console: Console | None = None,
    address: str | None = None,
) -> BatchSummary:
    """Scores every row of a Parquet file, or of all in a folder, under a bundle; run it again to resume.

    Args:
        data: With columns user_id, prompt and response; others are kept. A path, or a URI of a filesystem that pyarrow knows.
        bundle: Its folder, which every machine of the cluster has to reach.
        out: Folder of the results; files keep their names.
        onboarded: File or folder of onboarded users, see `read_onboarded`.
        address: A running Ray cluster to join.

    Raises:
        DataError: A file lacks a column, or a row a text: said before a model is loaded.
        ArtifactError: The bundle is not one, or the onboarded users belong to another.
        ConfigError: `out` lies among the inputs.
        OutputError: `out` cannot be written.
    """
    settings, console = settings or BatchSettings(), console or Console(quiet=True)
    check_apart(data, out)
    manifest = Manifest.read(local_copy(bundle), verify=True)
    made_from = [manifest.name]
    if onboarded is not None:
        read_onboarded(onboarded, bundle=manifest.name)
        made_from += [file_fingerprint(path) for path in list_onboarded(onboarded)]
    with console.status("Checking the rows"):
        todo, skipped = _plan(data, out, made_from, settings)
    if skipped:
        console.print(f"{skipped:,} file{'s are' if skipped > 1 else ' is'} done already.")
    # On the clock of the wall, which workers on other machines know too.
    started, begun = time.time(), float("inf")
    rows = sum(file.rows for file in todo)
    if todo:
        start_ray(address)
        pool = choose_pool(settings, console)
        arguments = {"data": data, "out": out, "bundle": bundle, "onboarded": onboarded, "settings": settings, "pool": pool}
        with progress_bar(console, "Scoring") as say:
            begun = _score(todo, out, arguments, pool, lambda done: say(done, rows))
    filesystem, path = open_location(out)
    remove_folder(filesystem, f"{path}/.parts")
    ended = time.time()
    return BatchSummary(rows, len(todo), skipped, ended - started, min(begun, ended) - started)


def _plan(data: str, out: str, made_from: list[str], settings: BatchSettings) -> tuple[list[FileOfScores], int]:
    """The files that are to be made, and how many are there. Files that are to be made are checked, row by row."""
    filesystem, _ = open_location(data)
    target, folder = open_location(out)
    todo, skipped = [], 0
    for source in find_files(data, [".parquet"]):
        stamp = fingerprint([source.name, source.version, made_from])
        path = f"{folder}/{source.name}"
        if has_stamp(target, path, stamp):
            skipped += 1
            continue
        with contextlib.closing(open_parquet(filesystem, source.path)) as parquet:
            schema = parquet.schema_arrow
            check_columns(schema, ROW_COLUMNS, where=source.path)
            for field in SCORE_FIELDS:
                if field.name in schema.names:
                    raise DataError(
                        f"It has a column {field.name!r} already.", where=source.path, fix="Rename it: the scores go there."
                    )
            rows = check_texts(parquet.iter_batches(columns=list(ROW_COLUMNS)), ROW_COLUMNS, where=source.path)
        step, scratch = settings.rows_per_part, f"{folder}/.parts/{stamp[:16]}"
        bounds = [(start, min(rows, start + step)) for start in range(0, rows, step)]
        parts = tuple(Part(source.path, *bound, f"{scratch}/{'-'.join(map(str, bound))}.parquet", stamp) for bound in bounds)
        todo.append(FileOfScores(source, stamped(_with_scores(schema), stamp), path, stamp, parts))
    return todo, skipped


def _with_scores(schema: pa.Schema) -> pa.Schema:
    for field in SCORE_FIELDS:
        schema = schema.append(field)
    return schema


def _score(todo: list[FileOfScores], out: str, arguments: dict[str, Any], pool: Pool, say: Callable[[int], None]) -> float:
    """Has the parts scored that are not there, and joins a file's parts as soon as all are; returns when the first was begun."""
    filesystem, _ = open_location(out)
    begun = float("inf")
    by_part = {part.out: file for file in todo for part in file.parts}
    missing = {file.out: {part.out for part in file.parts} for file in todo}
    there = [part for file in todo for part in file.parts if has_stamp(filesystem, part.out, part.stamp)]
    done = 0

    def arrived(path: str, rows: int) -> None:
        nonlocal done
        file, done = by_part[path], done + rows
        missing[file.out].discard(path)
        if not missing[file.out]:
            _finish(file, out)
        say(done)

    for file in todo:
        if not file.parts:
            _finish(file, out)
    for part in there:
        arrived(part.out, part.stop - part.start)
    known = {part.out for part in there}
    parts = [asdict(part) for file in todo for part in file.parts if part.out not in known]
    if parts:
        for result in work_off(parts, PartScorer, arguments, pool):
            begun = min(begun, result["began"])
            arrived(result["out"], result["rows"])
    return begun


def _finish(file: FileOfScores, out: str) -> None:
    filesystem, _ = open_location(out)
    parts = [part.out for part in file.parts]
    if not parts:
        with parquet_writer(filesystem, file.out, file.schema):
            pass
        return
    join_files(filesystem, parts, file.out, file.schema)
    remove_folder(filesystem, parts[0].rpartition("/")[0])
