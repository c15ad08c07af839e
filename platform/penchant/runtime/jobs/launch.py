"""Running a job in this process: what the launchers in `jobs/` and a submitted job's entry point do."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from penchant.errors import ConfigError, PenchantError
from penchant.runtime.jobs.settings import Job, load_job
from penchant.runtime.leaving import leave_at_once

# What Ray sets for the driver of a submitted job, which runs in an uploaded copy of somebody's folder.
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def launch(job: str | None = None, config: Path | None = None, arguments: Sequence[str] | None = None) -> NoReturn:
    """Parses `[--config FILE] [KEY=VALUE ...]`, runs the job, and ends the process.

    0 is success, 2 a mistake of the user's, told in one paragraph, 130 Ctrl-C, 1 anything else.

    Args:
        job: The job that it has to be; by default any.
        config: Its YAML, where none is given.
        arguments: By default the command line's.
    """
    console, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
    parser = argparse.ArgumentParser(description=f"Run the job {job}." if job else "Run a job.")
    parser.add_argument("--config", type=Path, default=config, required=config is None, help="YAML of the job's settings.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Settings, such as out=runs/mine.")
    given = parser.parse_intermixed_args(arguments)
    try:
        settings = load_job(given.config, given.overrides)
        check_job(settings, job, where=str(given.config))
        settings.run(console)
    except PenchantError as error:
        errors.print(f"[bold red]error[/] {escape(str(error))}")
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("Stopped. Run the same command again to resume.")
        leave_at_once()
    sys.exit(0)


def check_job(settings: Job, job: str | None, *, where: str) -> None:
    """Checks that it is the job that was meant, and that its results will stay.

    Raises:
        ConfigError: It is another job; or it was submitted, and its results would go into the copy of the folder that Ray
            made for it and deletes afterwards.
    """
    if job is not None and settings.job != job:
        raise ConfigError(f"It holds the job {settings.job!r}, not {job!r}.", where=where, fix="Give the YAML of this job.")
    if _SUBMITTED in os.environ and "://" not in settings.out and not Path(settings.out).is_absolute():
        raise ConfigError(
            f"out={settings.out} lies in the copy of your folder that Ray deletes when the job ends.",
            where=where,
            fix="Give an absolute path, or a URI such as s3://bucket/run.",
        )
