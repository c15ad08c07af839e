"""Submitting a job to a cluster: the library goes along, runs and data do not.

A job is known by its results' folder. While one is at work there, the same job submitted again is followed rather than started;
afterwards it is started again, and continues where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import penchant
from penchant.artifacts import file_fingerprint, fingerprint
from penchant.config import dump_settings
from penchant.errors import ConfigError, OutputError, TrainingError
from penchant.runtime.cluster import DRIVER_CPUS, show_token
from penchant.runtime.jobs.settings import Job

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where the dashboard of `ray start --head` listens."""
STOPPED = 143
"""The exit code of a job that somebody stopped: what shells say for SIGTERM."""
MOST_BYTES = 32 * 2**20
"""The most that is shipped: the library is a small part of it."""
_PATIENCE_SECONDS = 60.0
_THIS_MACHINE = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True)
class Submission:
    """A job on a cluster."""

    client: JobSubmissionClient
    address: str
    id: str
    attached: bool
    """Whether it was at work already."""


def connect(address: str | None = None) -> tuple[JobSubmissionClient, str]:
    """A client of a cluster's dashboard, and its address.

    Args:
        address: By default `RAY_API_SERVER_ADDRESS`, else that of a cluster on this machine.

    Raises:
        TrainingError: Nobody answers there, or it asks for a token.
    """
    chosen = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    where = f"--address {chosen}"
    _check_reachable(chosen, where)
    host = _parts(chosen).hostname or ""
    show_token(host)
    if host in _THIS_MACHINE:
        # Ray's client asks the environment's proxy, which does not reach this machine.
        passed_by = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = f"{passed_by},{host}" if passed_by else host
    os.environ["RAY_API_SERVER_ADDRESS"] = chosen  # or Ray would prefer RAY_ADDRESS to what it is told
    try:
        client = JobSubmissionClient(chosen)
        client.list_jobs()
    except AuthenticationError:
        raise TrainingError(
            "The cluster asks for a token.",
            where=where,
            fix="Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.",
        ) from None
    except (ConnectionError, RuntimeError, ValueError, requests.RequestException) as error:
        raise TrainingError(
            f"No Ray dashboard answers there ({error}).", where=where, fix="Give the dashboard's address, http://HOST:8265."
        ) from None
    return client, chosen


def _parts(address: str) -> SplitResult:
    return urlsplit(address if "://" in address else f"//{address}")


def _check_reachable(address: str, where: str) -> None:
    parts = _parts(address)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"There is no Ray cluster ({error}).",
            where=where,
            fix="`ray start --head` starts one on this machine; without a cluster, run the job's launcher: python jobs/NAME.py.",
        ) from None


def check_inputs(job: Job) -> list[str]:
    """The inputs that are not on this machine, which the cluster has to have.

    Raises:
        ConfigError: A relative path is not there, which can only mean this machine; or a file that is to be sent along.
    """
    for name in job.files:
        if (file := getattr(job, name)) is not None and not Path(file).is_file():
            raise ConfigError("There is no such file.", where=f"{name}={file}", fix="Check it: it is sent along.")
    elsewhere = []
    for name in job.inputs:
        place = getattr(job, name)
        if place is None or "://" in place or Path(place).exists():
            continue
        if not Path(place).is_absolute():
            raise ConfigError(
                "There is no such file or folder.",
                where=f"{name}={place}",
                fix="Check it; an absolute path may be the cluster's.",
            )
        elsewhere.append(place)
    return elsewhere


def submit(job: Job, *, address: str | None = None, python: str | None = None, driver_cpus: float | None = None) -> Submission:
    """Submits a job, or finds it at work.

    Args:
        address: Of the cluster's dashboard.
        python: What runs it there; by default this Python where the cluster has it, as on one's own machine, else `python`.
        driver_cpus: Cores that the job's own process takes; with some, it may run on another machine than the head.

    Raises:
        TrainingError: There is no cluster, or it refuses the job.
        OutputError: A job with other settings is at work in the same folder, or what is to be shipped is too large.
    """
    client, chosen = connect(address)
    job = job.located()
    settings = _settings_fingerprint(job)
    before = [details for details in client.list_jobs() if (details.metadata or {}).get("out") == job.out]
    if (busy := _at_work(before)) is not None:
        return _attach(client, chosen, busy, settings, job)
    command = f"{python or _this_python()} -m penchant.runtime.jobs --config job.yaml"
    stem, number = f"{job.job.replace('_', '-')}-{fingerprint(job.out)[:8]}", len(before) + 1
    metadata = {"job": job.job, "out": job.out, "settings": settings}
    if driver_cpus is not None:
        metadata[DRIVER_CPUS] = str(driver_cpus)
    with shipped(job) as folder:
        while True:
            name, environment = f"{stem}-{number}", {"working_dir": str(folder)}
            try:
                client.submit_job(
                    entrypoint=command,
                    submission_id=name,
                    runtime_env=environment,
                    metadata=metadata,
                    entrypoint_num_cpus=driver_cpus,
                )
                return Submission(client, chosen, name, attached=False)
            except RuntimeError as error:
                if "already exists" not in str(error):
                    fix = "See what it says."
                    raise TrainingError(f"The cluster refuses the job ({error}).", where=f"--address {chosen}", fix=fix) from None
            # Somebody submitted it at the same moment; or it is an old one that the cluster does not list any more.
            busy = _at_work([client.get_job_info(name)])
            if busy is not None:
                return _attach(client, chosen, busy, settings, job)
            number += 1


def _settings_fingerprint(job: Job) -> str:
    """Of what the settings say, in the files too that they name: an edited file is another job, wherever it lies."""
    files = {name: getattr(job, name) for name in job.files}
    contents = {name: file_fingerprint(Path(file)) for name, file in files.items() if file is not None}
    return fingerprint(job.model_dump(mode="json") | contents)


def _this_python() -> str:
    """For the head's shell: this very Python where that is there, else `python`."""
    return f'"$(command -v {shlex.quote(sys.executable)} || echo python)"'


def _at_work(jobs: list[JobDetails]) -> JobDetails | None:
    return next((details for details in jobs if not JobStatus(details.status).is_terminal()), None)


def _attach(client: JobSubmissionClient, address: str, busy: JobDetails, settings: str, job: Job) -> Submission:
    assert busy.submission_id is not None
    if (busy.metadata or {}).get("settings") != settings:
        raise OutputError(
            f"The job {busy.submission_id} with other settings is at work there.",
            where=f"out={job.out}",
            fix=f"Wait for it, stop it ({stop_command(address, busy.submission_id)}), or choose another folder.",
        )
    return Submission(client, address, busy.submission_id, attached=True)


def stop_command(address: str, submission_id: str) -> str:
    """What stops a job, for a shell."""
    return f"ray job stop --address {address} {submission_id}"


@contextlib.contextmanager
def shipped(job: Job) -> Iterator[Path]:
    """Yields a folder with what goes to the cluster: the library, the job's settings, and the files that they name.

    Raises:
        OutputError: It is too large: something lies in the library's folder that does not belong there.
    """
    library = Path(penchant.__file__).parent
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
        _check_size(library)
        shutil.copytree(library, folder / library.name, ignore=ignored)
        taken = {}
        for name in job.files:
            if (file := getattr(job, name)) is not None:
                shutil.copyfile(file, folder / f"{name}.yaml")
                taken[name] = f"{name}.yaml"
        (folder / "job.yaml").write_text(dump_settings(job.model_copy(update=taken)), encoding="utf-8")
        yield folder


def _check_size(library: Path) -> None:
    sizes = {path: path.stat().st_size for path in library.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise OutputError(
            f"{total / 2**20:.0f} MiB would be shipped, and {MOST_BYTES / 2**20:.0f} is the most; the largest file is {largest}.",
            where=str(library),
            fix="Move what is not the library's.",
        )


def follow(submission: Submission, write: Callable[[str], None]) -> int:
    """Passes the job's log on until it ends; returns its exit code.

    A connection that breaks is taken up again.

    Raises:
        TrainingError: The cluster has not answered for a minute.
    """
    client, name = submission.client, submission.id
    log = _Log(write)
    silent_since: float | None = None
    while True:
        try:
            asyncio.run(_tail(client, name, log))
            details = client.get_job_info(name)
            if JobStatus(details.status).is_terminal():
                log.catch_up(client.get_job_logs(name))
                return _exit_code(details, log)
            silent_since = None
        except (RuntimeError, aiohttp.ClientError, requests.RequestException, OSError) as error:
            now = time.monotonic()
            # Ray's tail ends with an error whenever a connection drops. One that brought text was an answer, however long ago the
            # one before it was lost.
            silent_since = now if silent_since is None or log.heard else silent_since
            log.heard = False
            if now - silent_since > _PATIENCE_SECONDS:
                raise TrainingError(
                    f"The cluster does not answer any more ({error}).",
                    where=f"--address {submission.address}",
                    fix="The job may go on: submit it again to follow it.",
                ) from None
        time.sleep(1.0)


class _Log:
    """What of a log has been passed on, however often it is read from the start."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write, self.written = write, 0
        self.heard = False
        """Whether text has come, new or not; `follow` sets it back."""

    def catch_up(self, text: str, start: int = 0) -> None:
        """Passes on what of `text`, which begins `start` characters into the log, is new."""
        self.heard = self.heard or bool(text)
        fresh = text[max(0, self.written - start) :]
        if fresh:
            self.write(fresh)
            self.written = start + len(text)


async def _tail(client: JobSubmissionClient, name: str, log: _Log) -> None:
    start = 0
    async for text in client.tail_job_logs(name):
        log.catch_up(text, start)
        start += len(text)


def _exit_code(details: JobDetails, log: _Log) -> int:
    if details.driver_exit_code is not None:
        return details.driver_exit_code
    if JobStatus(details.status) == JobStatus.STOPPED:
        log.write("The job was stopped.\n")
        return STOPPED
    if JobStatus(details.status) == JobStatus.FAILED:
        log.write(f"The job did not start: {details.message}\n")
        return 1
    return 0
