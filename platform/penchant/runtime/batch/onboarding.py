"""Onboarding many users: choices in, embeddings out, in files of users.

A user's choices may lie anywhere in the input, so they are dealt into bucket files by a hash of the user first; a worker onboards
the users of one bucket at a time::

    OUT/users-00003-of-00016.parquet  user_id, comparisons (their number), embedding
    OUT/.parts/                       buckets, while it runs
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from penchant.artifacts import Manifest, fingerprint
from penchant.errors import DataError
from penchant.runtime.batch.config import BatchSettings
from penchant.runtime.batch.files import (
    InputFile,
    check_apart,
    find_files,
    has_stamp,
    open_parquet,
    parquet_writer,
    read_stamp,
    remove_folder,
    stamped,
    write_table,
)
from penchant.runtime.batch.pool import Pool, choose_pool, load_model, work_off
from penchant.runtime.cluster import start_ray
from penchant.runtime.progress import progress_bar
from penchant.scoring.onboarded import choice_tables, group_choices, onboarded_table
from penchant.storage import local_copy, open_location

_MOST_BUCKETS = 256
"""Files that are written at once."""
_RESULT = re.compile(r"users-\d{5}-of-\d{5}\.parquet")


@dataclass(frozen=True)
class OnboardingSummary:
    """What was done, and what was there already."""

    users: int
    files: int
    skipped_files: int
    seconds: float


class BucketOnboarder:
    """What a worker is: a model that onboards the users of a bucket."""

    def __init__(self, out: str, bundle: str, settings: BatchSettings, pool: Pool) -> None:
        self.filesystem, _ = open_location(out)
        self.model = load_model(bundle, None, settings, pool)

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """Onboards a bucket's users and writes them; returns how many choices and users it had."""
        with contextlib.closing(open_parquet(self.filesystem, part["path"])) as parquet:
            choices = group_choices([parquet.read()])
        embeddings = self.model.embed_choices(choices)
        counts = {user: len(own) for user, own in choices.items()}
        table = onboarded_table(embeddings, counts)
        schema = stamped(table.schema, part["stamp"], bundle=self.model.manifest.name)
        write_table(self.filesystem, part["out"], table, schema)
        return {"rows": sum(counts.values()), "users": len(counts)}


def onboard_table(
    comparisons: str,
    bundle: str,
    out: str,
    *,
    settings: BatchSettings | None = None,
    console: Console | None = None,
    address: str | None = None,
) -> OnboardingSummary:
    """Onboards every user of a JSONL or Parquet file of choices, or of all in a folder; run it again to resume.

    Args:
        comparisons: With user_id, prompt, chosen and rejected (texts).
        bundle: Its folder, which every machine of the cluster has to reach.
        out: Folder of the results, as `penchant score --onboarded` and batch scoring take it.
        address: A running Ray cluster to join.

    Raises:
        DataError: A row lacks a text: said before a model is loaded.
        ArtifactError: The bundle is not one.
        ConfigError: `out` lies among the inputs.
        OutputError: `out` cannot be written.
    """
    settings, console = settings or BatchSettings(), console or Console(quiet=True)
    check_apart(comparisons, out)
    manifest = Manifest.read(local_copy(bundle), verify=True)
    files = find_files(comparisons, [".parquet", ".jsonl"])
    filesystem, folder = open_location(out)
    with console.status("Checking the rows"):
        rows = sum(len(table) for file in files for table in _read(comparisons, file))
    if not rows:
        raise DataError("There is no comparison.", where=comparisons, fix="Give at least one.")
    buckets = min(_MOST_BUCKETS, max(1, math.ceil(rows / settings.rows_per_part)))
    made_from = [[(file.name, file.version) for file in files], manifest.name, buckets]
    stamps = {
        f"{folder}/users-{number:05d}-of-{buckets:05d}.parquet": fingerprint([made_from, number]) for number in range(buckets)
    }
    todo = [number for number, (path, stamp) in enumerate(stamps.items()) if not has_stamp(filesystem, path, stamp)]
    started, users = time.monotonic(), 0
    if todo:
        scratch = f"{folder}/.parts"
        remove_folder(filesystem, scratch)
        with console.status("Dealing the choices"):
            dealt = _deal(comparisons, files, buckets, todo, out, scratch)
        outputs = list(stamps.items())
        parts = [{"path": path, "out": outputs[number][0], "stamp": outputs[number][1]} for number, path in dealt.items()]
        users = _onboard(parts, {"out": out, "bundle": bundle, "settings": settings}, rows, console, address)
        remove_folder(filesystem, scratch)
    _remove_others(out, stamps)
    return OnboardingSummary(users, len(todo), buckets - len(todo), time.monotonic() - started)


def _onboard(parts: list[dict[str, Any]], arguments: dict[str, Any], rows: int, console: Console, address: str | None) -> int:
    """Has the buckets worked off; returns the number of users."""
    done = users = 0
    if parts:  # there are buckets that nobody falls into
        start_ray(address)
        pool = choose_pool(arguments["settings"], console)
        with progress_bar(console, "Onboarding") as say:
            for result in work_off(parts, BucketOnboarder, arguments | {"pool": pool}, pool):
                done, users = done + result["rows"], users + result["users"]
                say(done, rows, f"{users:,} users")
    return users


def _read(place: str, file: InputFile) -> Iterator[pa.Table]:
    filesystem, _ = open_location(place)
    with filesystem.open_input_file(file.path) as opened:
        yield from choice_tables(opened, where=file.path)


def _deal(place: str, files: list[InputFile], buckets: int, wanted: list[int], out: str, scratch: str) -> dict[int, str]:
    """Writes the choices of each wanted bucket into a file of its own; returns their paths."""
    filesystem, _ = open_location(out)
    paths = {number: f"{scratch}/{number:05d}.parquet" for number in wanted}
    with contextlib.ExitStack() as stack:
        writers: dict[int, Any] = {}
        for file in files:
            for table in _read(place, file):
                bucket_N = _bucket(table["user_id"], buckets)
                for number in np.intersect1d(bucket_N, wanted).tolist():
                    if number not in writers:
                        writers[number] = stack.enter_context(parquet_writer(filesystem, paths[number], table.schema))
                    writers[number].write_table(table.filter(pa.array(bucket_N == number)))
    return {number: paths[number] for number in writers}


def _bucket(users: pa.ChunkedArray, buckets: int) -> np.ndarray:
    """The bucket of each row: int64 (N,). It depends on the user's id alone, on every machine."""
    encoded = users.combine_chunks().dictionary_encode()
    digests = (
        hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=8).digest() for user in encoded.dictionary.to_pylist()
    )
    bucket_U = np.array([int.from_bytes(digest) % buckets for digest in digests], dtype=np.int64)
    return bucket_U[encoded.indices.to_numpy()]


def _remove_others(out: str, stamps: dict[str, str]) -> None:
    """Users of another input, bundle or division are not among the results. What this job did not write stays.

    Args:
        stamps: Of each path that a result may have. A bucket that nobody falls into any more may have an old file there.
    """
    filesystem, _ = open_location(out)
    for file in find_files(out, [".parquet"]):
        if _RESULT.fullmatch(file.name) is None:
            continue
        stamp = read_stamp(filesystem, file.path)
        if stamp is not None and stamp != stamps.get(file.path):
            filesystem.delete_file(file.path)
