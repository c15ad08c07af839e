"""`penchant submit` and `penchant score-table`: work for a cluster."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console()

OverrideArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as out=runs/mine.", show_default=False),
]


def submit(
    config: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job and its settings, such as jobs/fit_reward.yaml.")],
    overrides: OverrideArguments = None,
    address: Annotated[
        str | None,
        typer.Option(help="The cluster's dashboard, http://HOST:8265; by default RAY_API_SERVER_ADDRESS, else this machine's."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the log until the job ends.")] = True,
    python: Annotated[
        str | None, typer.Option(help="What runs it there; by default this Python where the cluster has it, else `python`.")
    ] = None,
    driver_cpus: Annotated[
        float | None, typer.Option(min=0, help="Cores for the job's own process; with some, it need not run on the head.")
    ] = None,
) -> None:
    """Submit a job to a Ray cluster: ship the library, follow the log, end with the job's exit code.

    Submit it again to continue, or, while it is at work, to follow it. Ctrl-C stops following, not the job.

    Example:

        ray start --head

        penchant submit jobs/fit_reward.yaml data=runs/demo-data out=runs/submitted
    """
    from penchant.runtime.jobs.settings import load_job
    from penchant.runtime.leaving import leave_at_once

    job = load_job(config, overrides or [])
    with console.status("Submitting"):
        from penchant.runtime.jobs.submission import check_inputs, follow, stop_command  # brings Ray
        from penchant.runtime.jobs.submission import submit as submit_job

        elsewhere = check_inputs(job)
        submission = submit_job(job, address=address, python=python, driver_cpus=driver_cpus)
    for place in elsewhere:
        _say(f"{place} is not on this machine: the cluster has to have it.")
    _say(f"{submission.id} is at work already: following it." if submission.attached else f"Submitted {submission.id}.")
    again = shlex.join(["penchant", "submit", str(config), *(overrides or []), *(["--address", address] if address else [])])
    stop = stop_command(submission.address, submission.id)
    if not wait:
        _say(f"follow: {again}\nstop:   {stop}")
        return
    try:
        code = follow(submission, _write)
    except KeyboardInterrupt:
        _say(f"\nThe job goes on.\nfollow: {again}\nstop:   {stop}")
        leave_at_once()
    raise typer.Exit(code)


def score_table(
    bundle: Annotated[str, typer.Option("--bundle", help="The bundle/ folder that `penchant fit` left.", show_default=False)],
    data: Annotated[
        str, typer.Option("--data", help="Parquet with user_id, prompt, response: a file, or a folder.", show_default=False)
    ],
    out: Annotated[str, typer.Option("--out", help="Folder of the results; files keep their names.")] = "runs/scores",
    onboarded: Annotated[str | None, typer.Option(help="Users that `penchant onboard` or the job `onboard` wrote.")] = None,
    overrides: OverrideArguments = None,
) -> None:
    """Score every row of a table for its user, on all cores or GPUs. Run it again to resume.

    The same as the job `score` (`jobs/score.yaml`), on this machine, or on the cluster of RAY_ADDRESS.

    Example:

        penchant score-table --bundle runs/demo/bundle --data rows.parquet --out runs/scores
    """
    from penchant.config import load_settings
    from penchant.runtime.jobs.settings import ScoreJob

    values: dict[str, Any] = {"bundle": bundle, "data": data, "out": out, "onboarded": onboarded}
    load_settings(ScoreJob, overrides=overrides or [], values=values).run(console)


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True, highlight=False)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
