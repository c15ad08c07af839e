"""`penchant study`: the fits of a study that are missing, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from penchant.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from penchant.runtime.study.running import StudyRun

console = Console()


def study(
    file: Annotated[Path, typer.Argument(help="YAML of the study, such as study/frozen.yaml.", show_default=False)],
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="NAME=FOLDER", help="Where a data set of the study is; several.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the fits; give the same again to go on.")] = Path("runs/study"),
    page: Annotated[
        Path | None,
        typer.Option(help="Markdown page of the tables, their numbers in a .json beside it; by default results.md in --out."),
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="Run this part alone; several.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Run the fits with this seed alone; several.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Say what is done and what is missing, and run nothing.")] = False,
    keep: Annotated[bool, typer.Option(help="Keep bundles and checkpoints of the fits too.")] = False,
    at_once: Annotated[
        int | None,
        typer.Option(help="Fits side by side; by default one a GPU, or one a core. With 1, a fit has all workers.", min=1),
    ] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster to join.")] = None,
) -> None:
    """Run the fits that a study lacks, and write its tables and plots. What is done is not done again.

    Data sets without a folder are left out, and the page says so. If a fit fails, the others are made all the same.

    Example:

        penchant study study/frozen.yaml --data alpaca-p4=data/alpaca-p4 --part methods
    """
    from penchant.config import load_settings
    from penchant.runtime.study.page import write_plots, write_tables
    from penchant.runtime.study.results import gather, write_results
    from penchant.runtime.study.running import StudyRun
    from penchant.runtime.study.settings import StudySettings

    page = page or out / "results.md"
    if page.suffix == ".json":
        raise ConfigError("The numbers go there.", where=f"--page {page}", fix=f"Give {page.with_suffix('.md')}.")
    run = StudyRun.open(load_settings(StudySettings, file), out, dict(map(_folder, data or [])))
    if listing:
        _list(run)
        return
    failed = run.run(console, parts=part or [], seeds=seed or [], address=address, keep=keep, at_once=at_once)
    given = "".join(f" --data {name}=..." for name in run.data if name not in run.study.planted)
    results, numbers, plots = gather(run, f"penchant study {file}{given}"), page.with_suffix(".json"), out / "results.html"
    write_results(results, numbers)
    write_tables(results, page)
    write_plots(results, plots)
    if failed:
        words = "1 fit failed" if len(failed) == 1 else f"{len(failed)} fits failed, the first"
        raise TrainingError(f"{words}: {failed[0]}", where="study", fix="Run it again: what is done stays.")
    console.print(f"Tables: {page}\nNumbers: {numbers}\nPlots: {plots}", markup=False, soft_wrap=True)


def _folder(given: str) -> tuple[str, Path]:
    name, equals, folder = given.partition("=")
    if not equals or not name or not folder:
        raise ConfigError(f"{given!r} names no folder.", where="--data", fix="Write NAME=FOLDER.")
    return name, Path(folder)


def _list(run: StudyRun) -> None:
    from rich.table import Table

    table = Table("Part", "Data", "Fits", "Done", "Seconds of these")
    for name, part in run.study.parts.items():
        for data in part.data or run.study.data:
            cells = [cell for cell in run.cells([name]) if cell.data == data]
            done = [cell for cell in cells if run.is_done(cell)]
            seconds = sum(run.metrics(cell)["run"]["seconds"] for cell in done)
            table.add_row(
                name, data if data in run.data else f"{data} (no folder)", str(len(cells)), str(len(done)), f"{seconds:.0f}"
            )
    console.print(table)
    folders = {run.folder(cell): run.is_done(cell) for cell in run.cells()}
    console.print(f"{len(folders)} different fits, {sum(folders.values())} of them done.")
