"""What is said of data that was checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from penchant.data.schema import Problem

console = Console()


def show_problems(problems: Iterable[Problem]) -> None:
    """Prints every problem, and whether the data can be used; ends the command with code 2 where an error is among them."""
    problems = list(problems)
    for problem in problems:
        console.print(f"[{'red' if problem.severity == 'error' else 'yellow'}]{problem.severity}[/] {escape(str(problem))}")
    if any(problem.severity == "error" for problem in problems):
        raise typer.Exit(2)
    console.print("The data can be used." if not problems else "The data can be used; see the warnings.")
