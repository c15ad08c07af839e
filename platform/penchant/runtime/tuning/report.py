"""`sweep.html`: the history, parallel coordinates, importance and a heat map of a sweep, in one file that needs no network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.trial import TrialState, create_trial

from penchant.evaluation.pages import write_page
from penchant.runtime.tuning.results import FINISHED, STOPPED, TrialRow, ranked
from penchant.runtime.tuning.show import in_words, short
from penchant.runtime.tuning.space import Space

_COLOURS = {FINISHED: "#2f6fde", STOPPED: "#8fb2f0"}
_OTHER = "#8a8f98"


def write_sweep_report(path: Path, space: Space, rows: Sequence[TrialRow], values: dict[str, Any]) -> None:
    """Writes the report of a sweep, atomically.

    Args:
        values: What `sweep.json` holds.
    """
    weights = importance(space, rows)
    drawn = {
        "history": history(rows),
        "curves": learning_curves(rows),
        "parallel": parallel_coordinates(space, rows),
        "importance": importance_bars(weights),
        "heat": heat_map(space, rows, weights),
        "front": objectives_plane(values, rows),
    }
    write_page(
        path,
        "penchant.runtime.tuning",
        "sweep.html.jinja",
        drawn,
        values=values,
        best=next(row for row in rows if row.trial == values["best"]),
        rows=ranked(rows) + [row for row in rows if not row.counts],
        keys=list(space.parameters),
        short=short,
        in_words=in_words,
    )


def study_of(space: Space, rows: Sequence[TrialRow]) -> optuna.Study:
    """The trials that came to a look, as a study of Optuna's: for its figures."""
    study = optuna.create_study(direction="maximize")
    for row in rows:
        if row.counts:
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    value=row.accuracy,
                    params={short_key(space, key): value for key, value in row.values.items()},
                    distributions={
                        short_key(space, key): parameter.distribution() for key, parameter in space.parameters.items()
                    },
                )
            )
    return study


def short_key(space: Space, key: str) -> str:
    """The last part of a key, or as many parts as tell it from the others."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        tail = ".".join(parts[-count:])
        if sum(f".{other}".endswith(f".{tail}") for other in space.parameters) == 1:
            return tail
    return key


def importance(space: Space, rows: Sequence[TrialRow]) -> dict[str, float]:
    """How much each parameter matters for being among the best (PED-ANOVA, Watanabe et al., IJCAI 2023); by key, the sum 1.

    Empty where there are too few trials, or where they are all alike.
    """
    study = study_of(space, rows)
    if len(study.trials) < 4 or len({trial.value for trial in study.trials}) < 2:
        return {}
    names = {short_key(space, key): key for key in space.parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    return {names[name]: float(weight) for name, weight in found.items() if np.isfinite(weight)}


def history(rows: Sequence[TrialRow]) -> go.Figure:
    """Accuracy of each trial in the order of their starts, and the best so far."""
    figure = _figure("Accuracy on validation comparisons")
    shown = [row for row in rows if row.counts]
    for state in dict.fromkeys(row.state for row in shown):
        of_state = [row for row in shown if row.state == state]
        figure.add_scatter(
            x=[row.number for row in of_state],
            y=[row.accuracy for row in of_state],
            mode="markers",
            name=state,
            marker={"color": _COLOURS.get(state, _OTHER), "size": 9},
            text=[in_words(row.values) for row in of_state],
        )
    best = np.maximum.accumulate([row.accuracy or 0.0 for row in shown])
    figure.add_scatter(
        x=[row.number for row in shown], y=best, mode="lines", name="best so far", line={"shape": "hv", "color": "#2a9d6f"}
    )
    figure.update_xaxes(title="trial")
    return figure.update_yaxes(tickformat=".1%")


def learning_curves(rows: Sequence[TrialRow]) -> go.Figure:
    """What each look saw; a line that ends early was stopped."""
    figure = _figure("Accuracy at each look")
    for row in rows:
        if row.counts:
            figure.add_scatter(
                x=[look["step"] for look in row.looks],
                y=[look["valid_accuracy"] for look in row.looks],
                mode="lines+markers",
                name=f"{row.number}: {in_words(row.values)}",
                line={"width": 1.5, "color": _COLOURS.get(row.state, _OTHER)},
                showlegend=False,
            )
    figure.update_xaxes(title="steps")
    return figure.update_yaxes(tickformat=".1%")


def parallel_coordinates(space: Space, rows: Sequence[TrialRow]) -> go.Figure:
    """A line for each trial through its values, coloured by accuracy."""
    figure = optuna.visualization.plot_parallel_coordinate(study_of(space, rows), target_name="accuracy")
    return figure.update_layout(title=None, margin={"l": 60, "r": 60, "t": 60, "b": 40})


def importance_bars(weights: dict[str, float]) -> go.Figure | None:
    """Bars of `importance`."""
    if not weights:
        return None
    figure = _figure("")
    names = sorted(weights, key=lambda key: weights[key])
    figure.add_bar(y=[short(key) for key in names], x=[weights[key] for key in names], orientation="h", marker_color="#2f6fde")
    return figure.update_xaxes(tickformat=".0%")


def heat_map(space: Space, rows: Sequence[TrialRow], weights: dict[str, float]) -> go.Figure | None:
    """The best accuracy at each pair of values of two parameters: depth and experts where both are searched, else the two that
    matter most among those with few values."""
    few = {key: parameter.options() or [] for key, parameter in space.parameters.items() if len(parameter.options() or []) > 1}
    order = sorted(few, key=lambda key: (short(key) not in ("num_layers", "num_experts"), -weights.get(key, 0.0)))
    if len(order) < 2:
        return None
    down, across = sorted(order[:2], key=lambda key: short(key) != "num_layers")
    best = np.full((len(few[down]), len(few[across])), np.nan)
    count = np.zeros_like(best, dtype=int)
    for row in rows:
        if row.counts:
            cell = few[down].index(row.values[down]), few[across].index(row.values[across])
            best[cell], count[cell] = np.nanmax([best[cell], row.accuracy]), count[cell] + 1
    figure = _figure("")
    figure.add_heatmap(
        x=[str(value) for value in few[across]],
        y=[str(value) for value in few[down]],
        z=best,
        text=[["" if np.isnan(value) else f"{value:.1%}" for value in line] for line in best],
        customdata=count,
        texttemplate="%{text}",
        hovertemplate="%{text}, %{customdata} trials<extra></extra>",
        colorscale="Blues",
        colorbar={"tickformat": ".1%"},
    )
    figure.update_xaxes(title=short(across), type="category")
    return figure.update_yaxes(title=short(down), type="category")


def objectives_plane(values: dict[str, Any], rows: Sequence[TrialRow]) -> go.Figure | None:
    """Accuracy against the other objective, with the trials that no other beats in both. None with one objective."""
    others = [name for name in values["objectives"] if name != "accuracy"]
    if not others:
        return None
    figure = _figure("Accuracy on validation comparisons")
    for name, front in (("others", False), ("no other beats it", True)):
        chosen = [row for row in rows if row.counts and (row.trial in values["front"]) == front]
        figure.add_scatter(
            x=[getattr(row, others[0]) for row in chosen],
            y=[row.accuracy for row in chosen],
            mode="markers",
            name=name,
            marker={"color": "#2a9d6f" if front else _OTHER, "size": 9},
            text=[in_words(row.values) for row in chosen],
        )
    figure.update_xaxes(title=others[0].replace("_", " "))
    return figure.update_yaxes(tickformat=".1%")


def _figure(title: str) -> go.Figure:
    layout = {"template": "plotly_white", "margin": {"l": 60, "r": 20, "t": 20, "b": 50}, "height": 380}
    return go.Figure().update_layout(**layout, paper_bgcolor="rgba(0,0,0,0)").update_yaxes(title=title)
