"""`penchant adapters evaluate` and `penchant adapters study`: what personal adapters bring, on LaMP's files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penchant.cli.lamp import TaskOption

if TYPE_CHECKING:
    from penchant.adapters.config import LampSettings
    from penchant.adapters.variants import Variant
    from penchant.data.lamp import LampData

console = Console()

ROWS = "rag-1,rag-2,rag-4,pag,oppu,oppu+rag-1,oppu+pag"

LampOption = Annotated[
    Path, typer.Option("--lamp", help="Folder with one task's files, LaMP's own or OPPU's.", show_default=False)
]
OutOption = Annotated[Path, typer.Option("--out", help="Gets task bases, adapters, evaluation.json and evaluation.html.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML of settings.")]
OverrideArguments = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as fitting.epochs=5.", show_default=False)
]
WorkersOption = Annotated[int | None, typer.Option(help="Workers; by default one for each GPU, or one with all cores.", min=1)]
AddressOption = Annotated[str | None, typer.Option(help="A running Ray cluster to join, such as `auto`.")]


class On(StrEnum):
    """What is asked."""

    QUERIES = "queries"
    HISTORY = "history"


class Study(StrEnum):
    """The studies of the paper."""

    SHIFT = "behaviour-shift"
    ACTIVITY = "activity"
    FORMAT = "history-format"
    KINDS = "kinds"


OnOption = Annotated[On, typer.Option("--on", help="`history` asks about the latest past items instead: to choose settings by.")]


def adapters_evaluate(
    lamp: LampOption,
    task: TaskOption,
    out: OutOption = Path("runs/adapters"),
    rows: Annotated[str, typer.Option(help="Rows of the table: base, rag-K, pag, pag-written, oppu, oppu+rag-K, ...")] = ROWS,
    on: OnOption = On.QUERIES,
    config: ConfigOption = None,
    overrides: OverrideArguments = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Compare personal adapters with the task base, retrieval and profiles, and with the wrong user's adapter.

    Fits what the folder lacks. Run it again to go on, or to add rows.

    Example:

        penchant adapters evaluate --lamp my-films --task movie_tagging --rows rag-1,oppu
    """
    from penchant.adapters.variants import table_rows

    data, settings = _read(lamp, task, config, overrides)
    names = [name.strip() for name in rows.split(",") if name.strip()]
    _compare(data, settings, table_rows(names, settings), out, on, workers, address, "evaluation")


def adapters_study(
    study: Annotated[Study, typer.Argument(help="Which one.")],
    lamp: LampOption,
    task: TaskOption,
    out: OutOption = Path("runs/adapters"),
    retrieved: Annotated[int, typer.Option(help="history-format: past items that a prompt shows.", min=1)] = 1,
    on: OnOption = On.QUERIES,
    config: ConfigOption = None,
    overrides: OverrideArguments = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """One of the paper's studies: histories near in time to the queries or far, active users or not, history formats, kinds.

    Leaves STUDY.json and STUDY.html in the folder, which may be the one of an evaluation: what is fitted there is used.

    Example:

        penchant adapters study kinds --lamp my-films --task movie_tagging
    """
    from penchant.adapters import variants

    data, settings = _read(lamp, task, config, overrides)
    rows = {
        Study.SHIFT: lambda: variants.shift_study(settings),
        Study.ACTIVITY: lambda: variants.table_rows(["oppu"], settings),
        Study.FORMAT: lambda: variants.format_study(settings, data, retrieved),
        Study.KINDS: lambda: variants.kinds_study(settings),
    }[study]()
    _compare(data, settings, rows, out, on, workers, address, study.value)


def _read(lamp: Path, task: str, config: Path | None, overrides: list[str] | None) -> tuple[LampData, LampSettings]:
    from penchant.adapters.config import LampSettings
    from penchant.config import load_settings
    from penchant.data.lamp import find_task
    from penchant.data.lamp.reading import read_lamp

    settings = load_settings(LampSettings, config, overrides or ())
    data = read_lamp(lamp, find_task(task))
    console.print(data)
    return data, settings


def _compare(
    data: LampData,
    settings: LampSettings,
    rows: list[Variant],
    out: Path,
    on: On,
    workers: int | None,
    address: str | None,
    name: str,
) -> None:
    from penchant.artifacts import write_json
    from penchant.evaluation.personal_report import write_personal_report
    from penchant.evaluation.personal_results import personal_results
    from penchant.runtime.cluster import start_ray
    from penchant.runtime.training.config import WorkerSettings
    from penchant.runtime.training.lamp_run import LampRun
    from penchant.runtime.training.progress import ProgressLog, show_progress

    run = LampRun(data, settings, rows, out, WorkerSettings(num_workers=workers), on.value)
    start_ray(address)
    with show_progress(console, "Adapters", ProgressLog(run.log)):
        run.fit()
        answered = run.answer()
    results = personal_results(run.data, answered, run.settings, on=on.value, study=name, notes=run.notes)
    place = out / (name if on is On.QUERIES else f"{name}-{on.value}")
    write_json(place.with_suffix(".json"), results)
    write_personal_report(place.with_suffix(".html"), results)
    for title, group in results["groups"].items():
        console.print(_table(title, group))
    for note in results["notes"]:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    console.print(f"Report: {place.with_suffix('.html')}", soft_wrap=True)


def _table(title: str, group: dict[str, Any]) -> Table:
    from penchant.evaluation.personal import AGAINST, verdict
    from penchant.evaluation.personal_report import METRIC_NAMES

    metrics = list(group["rows"][AGAINST])
    columns = [words for metric in metrics for words in (METRIC_NAMES[metric], "against base")]
    table = Table("Row", *columns, title=f"{title}: {group['users']:,} users, {group['queries']:,} queries")
    for row, cells in group["rows"].items():
        shown = []
        for metric in metrics:
            cell, difference = cells[metric], cells[metric].get("difference")
            shown.append(f"{cell['value']:.3f}")
            if difference is None:
                shown.append("")
                continue
            colour = {"better": "green", "worse": "red"}.get(verdict(metric, difference, group["users"]), "default")
            span = escape(f"[{difference['low']:+.3f}, {difference['high']:+.3f}]")
            shown.append(f"[{colour}]{difference['value']:+.3f} {span}[/]")
        table.add_row(escape(row), *shown)
    return table
