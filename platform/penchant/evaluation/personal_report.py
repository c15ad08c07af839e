"""`evaluation.html` of personal adapters: the table, the differences and a plot, in one file that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from penchant.evaluation.figures import plain_figure
from penchant.evaluation.pages import write_page
from penchant.evaluation.personal import AGAINST, LOWER_IS_BETTER, verdict

METRIC_NAMES = {
    "accuracy": "Accuracy", "macro_f1": "Macro-F1", "mae": "MAE", "rmse": "RMSE", "rouge_1": "ROUGE-1", "rouge_l": "ROUGE-L",
}  # fmt: skip
_COLOURS = {"better": "#2a9d6f", "worse": "#d1495b", "no difference shown": "#8a8f98", "too few users": "#c3c7cf"}


def write_personal_report(path: Path, results: dict[str, Any]) -> None:
    """Writes the report of an evaluation or a study, atomically.

    Args:
        results: What `evaluation.json` holds.
    """
    draw = differences_plot if len(results["groups"]) == 1 else groups_plot
    write_page(
        path,
        "penchant.evaluation",
        "personal.html.jinja",
        {"personal": draw(results)},
        results=results,
        headline=headline(results),
        metric_names=METRIC_NAMES,
        verdict=verdict,
    )


def first_metric(results: dict[str, Any]) -> str:
    """The metric that the plot and the headline are about."""
    group = next(iter(results["groups"].values()))
    return str(next(iter(group["rows"][AGAINST])))


def headline(results: dict[str, Any]) -> list[str]:
    """What the numbers say of each row with adapters, in words; a difference that may be none is said to be none."""
    metric, sentences = first_metric(results), []
    group, *more = results["groups"].values()
    if more:
        return [f"{METRIC_NAMES[metric]} by group of users, against the task base."]
    for row, cells in group["rows"].items():
        difference = cells[metric].get("difference")
        if difference is None or not row.startswith("oppu"):
            continue
        span = f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
        score = f"{METRIC_NAMES[metric]} {cells[metric]['value']:.3f}"
        sentences.append(f"{row}: {score}, {span} against the task base: {verdict(metric, difference, group['users'])}.")
    return sentences


def differences_plot(results: dict[str, Any]) -> go.Figure:
    """Each row's paired difference to the task base in the first metric, with its interval; what excludes 0 is coloured."""
    metric = first_metric(results)
    (group,) = results["groups"].values()
    cells = {row: metrics[metric]["difference"] for row, metrics in group["rows"].items() if row != AGAINST}
    words = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
    figure = plain_figure("")
    for said, colour in _COLOURS.items():
        rows = [row for row, cell in cells.items() if verdict(metric, cell, group["users"]) == said]
        if not rows:
            continue
        value = np.array([cells[row]["value"] for row in rows])
        figure.add_scatter(
            x=value,
            y=rows,
            mode="markers",
            name=said,
            marker={"color": colour, "size": 10},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": np.array([cells[row]["high"] for row in rows]) - value,
                "arrayminus": value - np.array([cells[row]["low"] for row in rows]),
            },
        )
    figure.add_vline(x=0, line_dash="dot", line_color="#8a8f98", annotation_text="task base")
    figure.update_yaxes(categoryorder="array", categoryarray=list(cells)[::-1])
    figure.update_xaxes(title=f"difference in {METRIC_NAMES[metric]} ({words})")
    return figure.update_layout(height=140 + 34 * len(cells), margin={"l": 190, "r": 16, "t": 64, "b": 56})


def groups_plot(results: dict[str, Any]) -> go.Figure:
    """The first metric of each row, by group of users."""
    metric = first_metric(results)
    figure = plain_figure(METRIC_NAMES[metric])
    groups = results["groups"]
    for row in next(iter(groups.values()))["rows"]:
        cells = [group["rows"][row][metric] for group in groups.values()]
        value = np.array([cell["value"] for cell in cells])
        figure.add_scatter(
            x=list(groups),
            y=value,
            mode="lines+markers",
            name=row,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": np.array([cell["high"] for cell in cells]) - value,
                "arrayminus": value - np.array([cell["low"] for cell in cells]),
                "thickness": 1,
            },
        )
    return figure
