"""`penchant data`: check, split, import and generate data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penchant.cli.imports import import_app
from penchant.cli.lamp import lamp_app
from penchant.cli.problems import show_problems

data_app = typer.Typer(no_args_is_help=True, help="Check, split, import and generate data sets.")
data_app.add_typer(import_app, name="import")
data_app.add_typer(lamp_app, name="lamp")

console = Console()


@data_app.command("check")
def data_check(folder: Annotated[str, typer.Argument(help="A data set's folder, or its URI.")]) -> None:
    """What is in a data set, and every problem with it. Exit code 2 if there is an error."""
    from penchant.data import PreferenceDataset
    from penchant.data.dataset import find_problems, read_origin, read_tables
    from penchant.data.summary import summarise
    from penchant.storage import local_copy

    copy = local_copy(folder)
    tables, origin = read_tables(copy), read_origin(copy)
    problems = find_problems(tables)
    failed = any(problem.severity == "error" for problem in problems)
    if not failed:
        dataset = PreferenceDataset.from_tables(**tables, where=folder)
        problems = list(dataset.warnings)
        table = Table("What", "Value", title=folder)
        if origin is not None:
            table.add_row("from", escape(str(origin.get("data_set"))))
            table.add_row("users are", escape(str(origin.get("users_are"))))
        for name, value in summarise(dataset).as_dict().items():
            words = ", ".join(f"{key} {part:,}" for key, part in value.items()) if isinstance(value, dict) else value
            number = f"{words:,.3g}" if isinstance(words, float) else f"{words:,}" if isinstance(words, int) else str(words)
            table.add_row(name.replace("_", " "), number)
        console.print(table)
    show_problems(problems)


@data_app.command("split")
def data_split(
    folder: Path,
    out: Path,
    test_prompts: Annotated[float, typer.Option(help="Share of the prompts held out for test.")] = 0.1,
    valid: Annotated[float, typer.Option(help="Share of each user's other comparisons held out for validation.")] = 0.1,
    unseen: Annotated[float, typer.Option(help="Share of the users kept out of training.")] = 0.05,
    seed: int = 0,
) -> None:
    """Add `split` (by prompt) and `cohort` (by user) to a data set that lacks them."""
    from penchant.data.split import split_dataset

    console.print(split_dataset(folder, out, test_prompts=test_prompts, valid=valid, unseen=unseen, seed=seed))


@data_app.command("synth")
def data_synth(
    out: Path,
    users: Annotated[int | None, typer.Option(help="Seen users.", show_default=False)] = None,
    unseen_users: Annotated[int | None, typer.Option(help="Users kept out of training.", show_default=False)] = None,
    groups: Annotated[int | None, typer.Option(help="Groups of one taste each.", show_default=False)] = None,
    agreement: Annotated[float | None, typer.Option(help="Share of pairs that two groups agree on.", show_default=False)] = None,
    individuality: Annotated[
        float | None, typer.Option(help="How much of a user's taste is their own, not their group's.", show_default=False)
    ] = None,
    prompts: Annotated[int | None, typer.Option(help="Prompts; 15% are for test.", show_default=False)] = None,
    comparisons: Annotated[
        int | None, typer.Option(help="Train comparisons a user; with --protocol avg, on average.", show_default=False)
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="`all`: every user has that many; `avg`: 1 to 2n - 1.", show_default=False)
    ] = None,
    noise: Annotated[float | None, typer.Option(help="Share of choices against the user's taste.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes everything.", show_default=False)] = None,
) -> None:
    """Generate the planted world: users in groups of known taste, so that the best reachable accuracy is known.

    What is left out is as in `penchant demo`; `truth.json` in the folder says everything that the world is made of.

    Example:

        penchant data synth my-world --users 200 --groups 3 --noise 0.05
    """
    from penchant.config import load_settings
    from penchant.data.planted import PlantedWorld, save_planted

    asked = {
        "users": users, "unseen_users": unseen_users, "groups": groups, "agreement": agreement,
        "individuality": individuality, "prompts": prompts,
        "comparisons_per_user": comparisons, "protocol": protocol, "noise": noise, "seed": seed,
    }  # fmt: skip
    world = load_settings(PlantedWorld, given=asked)
    dataset, truth = save_planted(world, out)
    console.print(dataset)
    console.print(
        f"Best reachable accuracy (Bayes): {truth.bayes_accuracy:.4f}; without knowing the user: "
        f"{truth.uniform_bayes_accuracy:.4f}. Two groups agree on {truth.agreement:.1%} of the pairs."
    )
