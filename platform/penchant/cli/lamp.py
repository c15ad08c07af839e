"""`penchant data lamp`: check LaMP files, and generate planted ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from penchant.cli.problems import show_problems

lamp_app = typer.Typer(no_args_is_help=True, help="Check and generate histories in LaMP's files (for personal adapters).")

console = Console()

TaskOption = Annotated[str, typer.Option("--task", help="LaMP's name or OPPU's: LaMP_3, product_rating.", show_default=False)]


@lamp_app.command("check")
def lamp_check(folder: Annotated[Path, typer.Argument(help="A folder with one task's files.")], task: TaskOption) -> None:
    """What is in a LaMP folder, and every problem with it. Exit code 2 if there is an error.

    Reads LaMP's own layout (train and dev, questions and outputs) and OPPU's (user_top_100_history.json, user_others.json).
    """
    from statistics import median

    from penchant.adapters.tasks.baselines import majority
    from penchant.adapters.tasks.metrics import score
    from penchant.data.lamp import find_task
    from penchant.data.lamp.reading import examine_lamp

    chosen = find_task(task)
    data, problems = examine_lamp(folder, chosen)
    if data is not None:
        table = Table("Users", "Count", "Items", "Items a user", "Queries", title=f"{chosen.name}: {chosen.title}")
        for name, users in (("target", data.targets), ("other", data.others)):
            items = [len(user.items) for user in users.values()] or [0]
            queries = sum(len(user.queries) for user in users.values())
            spread = f"{min(items)} to {max(items):,}, median {median(items):g}"
            table.add_row(name, f"{len(users):,}", f"{sum(items):,}", spread, f"{queries:,}")
        console.print(table)
        asked = [user for user in data.targets.values() if user.queries]
        answers = [majority(chosen, user) for user in asked]
        if asked and all(answer is not None for answer in answers):
            golds = [query.gold for user in asked for query in user.queries]
            scores = score(chosen, [text for answer in answers for text in answer or ()], golds)
            console.print(f"Each target user's commonest answer scores {_told(scores)}.")
    show_problems(problems)


@lamp_app.command("synth")
def lamp_synth(
    out: Path,
    task: TaskOption,
    users: Annotated[int | None, typer.Option(help="Target users.", show_default=False)] = None,
    other_users: Annotated[int | None, typer.Option(help="Users for the task adapter.", show_default=False)] = None,
    items: Annotated[int | None, typer.Option(help="Past items of a user.", show_default=False)] = None,
    queries: Annotated[int | None, typer.Option(help="Questions about a user.", show_default=False)] = None,
    noise: Annotated[float | None, typer.Option(help="Share of answers against the user's rule.", show_default=False)] = None,
    layout: Annotated[str | None, typer.Option(help="`lamp` or `oppu`: whose files.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes everything.", show_default=False)] = None,
) -> None:
    """Generate a planted task: users with a known rule each, in LaMP's files, so that the best reachable score is known.

    `truth.json` in the folder holds every user's rule, and what it answers to each query.

    Example:

        penchant data lamp synth my-films --task movie_tagging --users 50
    """
    from penchant.adapters.tasks.metrics import score
    from penchant.config import load_settings
    from penchant.data.lamp.planted import LampWorld, save_planted_lamp
    from penchant.data.lamp.reading import read_lamp
    from penchant.data.lamp.tasks import find_task

    asked = {
        "task": find_task(task).name, "users": users, "other_users": other_users, "items": items, "queries": queries,
        "noise": noise, "layout": layout, "seed": seed,
    }  # fmt: skip
    world = load_settings(LampWorld, given=asked)
    truth = save_planted_lamp(world, out)
    data = read_lamp(out, find_task(world.task))
    console.print(data)
    golds = {query.id: query.gold for user in data.targets.values() for query in user.queries}
    for words, answers in (("Whoever knows each user's rule", truth.best), ("Whoever has the text alone", truth.unpersonalised)):
        scores = score(data.task, [answers[query] for query in golds], list(golds.values()))
        console.print(f"{words} reaches {_told(scores)} on these queries.")
    if truth.expected:
        console.print(f"By construction, the first is expected to reach {_told(truth.expected)}.")


def _told(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
