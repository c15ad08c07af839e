"""What every benchmark prints and leaves: a table, and the same as JSON; some draw too."""

import json
import os
from pathlib import Path

import plotly.graph_objects as go
import torch
from rich.console import Console
from rich.table import Table

OUT = Path("runs/benchmarks")


def report(name: str, title: str, rows: list[dict], notes: list[str] | None = None) -> None:
    """Prints the rows (dictionaries with the same keys) and writes runs/benchmarks/NAME.json. NaN is what was not measured."""
    rows = [{name: None if value != value else value for name, value in row.items()} for row in rows]  # JSON has no NaN
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(_written, row.values()))
    console = Console(width=150)
    console.print(table)
    for note in notes or []:
        console.print(note)
    OUT.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    path = OUT / f"{name}.json"
    path.write_text(
        json.dumps({"title": title, "rows": rows, "notes": notes or [], "machine": machine}, indent=2, allow_nan=False) + "\n"
    )
    console.print(f"[dim]{path}[/]")


def _written(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


def draw(name: str, figure: go.Figure) -> None:
    """Writes runs/benchmarks/NAME.html, a page that needs no network."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.html"
    figure.write_html(path)
    Console(width=150).print(f"[dim]{path}[/]")
