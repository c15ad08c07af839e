"""`penchant tune`: search settings by many short trials, and leave the best for `penchant fit --config`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penchant.errors import ConfigError

if TYPE_CHECKING:
    from penchant.runtime.tuning.results import TrialRow

console = Console()
_SHOWN = 10
_UNITS = {"s": 1, "m": 60, "h": 3600}


def tune(
    data: Annotated[
        str, typer.Option("--data", help="Folder of responses, comparisons and users, or a URI (s3://...).", show_default=False)
    ],
    space: Annotated[Path, typer.Option(help="YAML of what is searched, such as tune/reward.yaml.", show_default=False)],
    out: Annotated[
        str, typer.Option("--out", help="Folder of the sweep, or a URI (s3://...): best.yaml, sweep.json, sweep.html.")
    ] = "runs/sweep",
    trials: Annotated[int | None, typer.Option(min=1, help="Trials to start; by default the space's.")] = None,
    time: Annotated[str | None, typer.Option(help="The trials' time, such as 30m or 2h; what runs then is stopped.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML of settings that all trials start from.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of all trials and of the best.", show_default=False),
    ] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster to join, such as `auto`.")] = None,
) -> None:
    """Search settings: many short trials, the poor ones stopped early, the best chosen by validation.

    Run it again to resume.

    Examples:

        penchant tune --data my-data --space tune/reward.yaml --out runs/sweep --trials 32 --time 30m

        penchant fit --data my-data --out runs/best --config runs/sweep/best.yaml
    """
    from penchant.data import PreferenceDataset
    from penchant.runtime.tuning.candidates import base_settings
    from penchant.runtime.tuning.space import load_space

    seconds = None if time is None else parse_seconds(time)
    found = load_space(str(space))
    base = base_settings(found, config, overrides or [], where=str(space))
    with console.status("Reading the data"):
        dataset = PreferenceDataset.load(data)
    console.print(dataset)
    with console.status("Starting"):
        from penchant.runtime.tuning.sweep import Sweep

        sweep = Sweep(dataset, found, base, out, console, trials=trials, seconds=seconds, address=address)
    result = sweep.run()
    show_trials(result.rows, result.values)
    console.print(f"Report: {sweep.folder.location('sweep.html')}", soft_wrap=True)
    # `--config` is a file of this machine.
    best = sweep.folder.path / "best.yaml" if sweep.folder.uri else f"{out}/best.yaml"
    console.print(f"Fit the best:\n  penchant fit --data {data} --out {out}-best --config {best}", markup=False, soft_wrap=True)


def parse_seconds(text: str) -> float:
    """Seconds from `90`, `90s`, `30m` or `2h`.

    Raises:
        ConfigError: It is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match or not float(match[1]):
        raise ConfigError(f"{text!r} is no time.", where="--time", fix="Write 90s, 30m or 2h.")
    return float(match[1]) * _UNITS[match[2] or "s"]


def show_trials(rows: list[TrialRow], values: dict[str, Any]) -> None:
    """The best trials as a table, those that failed with their reasons, and what the sweep took."""
    from penchant.runtime.tuning.results import FAILED
    from penchant.runtime.tuning.show import in_words

    found, several = values["summary"], len(values["objectives"]) > 1
    table = Table("Trial", "Settings", "Valid accuracy", "Steps", title=f"Best of {found['trials']} trials")
    for name in values["objectives"][1:]:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("State")
    able = [row for row in rows if row.counts]
    for row in able[:_SHOWN]:
        others = [f"{getattr(row, name):,.3g}" for name in values["objectives"][1:]]
        mark = "*" if several and row.trial in values["front"] else ""
        table.add_row(f"{row.number}{mark}", in_words(row.values), f"{row.accuracy:.4f}", str(row.steps), *others, row.state)
    console.print(table)
    if several:
        console.print("* no other trial is as good in every objective and better in one; the first is the most accurate.")
    console.print(f"Chosen: {escape(values['why'])}", highlight=False)
    for row in rows:
        if row.state == FAILED:
            console.print(f"[red]failed[/] trial {row.number} ({escape(in_words(row.values))}): {escape(row.reason)}")
    for reason, count in found["refused"].items():
        console.print(f"[yellow]refused[/] {count}: {escape(reason)}")
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items())
    console.print(
        f"{states}; {found['stopped_early_share']:.0%} stopped early. {found['seconds'] / 60:.1f} minutes of trials, "
        f"{found['overhead_seconds_a_trial']:.1f} s a trial beside its training."
    )
