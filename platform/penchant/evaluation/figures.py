"""The report's pictures, as plotly figures. Each returns None where the metrics have nothing to show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

if TYPE_CHECKING:
    from penchant.evaluation.report import MapPoints

METHOD_NAMES = {
    "uniform": "Uniform",
    "frozen": "Personalised, frozen base",
    "personalised": "Personalised",
    "oracle": "Oracle",
    "wrong_user": "Wrong user",
}
"""Methods as people read them."""
_COLOURS = {"uniform": "#8a8f98", "frozen": "#8fb2f0", "personalised": "#2f6fde", "oracle": "#2a9d6f", "wrong_user": "#d1495b"}
# Okabe and Ito's palette: told apart by people with any colour vision.
_GROUPS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7a7a7a")


def accuracy_bars(metrics: dict[str, Any]) -> go.Figure | None:
    """Accuracy of every method by cohort and kind, with intervals."""
    accuracy = metrics.get("accuracy")
    if not accuracy:
        return None
    figure = plain_figure("Share of held-out choices ranked right")
    for method, cohorts in accuracy.items():
        cells = [(f"{cohort}, {kind}", cell) for cohort, kinds in cohorts.items() for kind, cell in kinds.items()]
        values = np.array([cell["value"] for _, cell in cells])
        figure.add_bar(
            name=METHOD_NAMES[method],
            x=[name for name, _ in cells],
            y=values,
            marker_color=_COLOURS[method],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": np.array([cell["high"] for _, cell in cells]) - values,
                "arrayminus": values - np.array([cell["low"] for _, cell in cells]),
                "thickness": 1.2,
            },
        )
    figure.add_hline(y=0.5, line_dash="dot", line_color="#8a8f98", annotation_text="chance")
    if "bayes_accuracy" in metrics:
        figure.add_hline(
            y=metrics["bayes_accuracy"],
            line_dash="dash",
            line_color="#2a9d6f",
            annotation_text="best reachable (Bayes)",
        )
    lowest = min(cell["low"] for cohorts in accuracy.values() for kinds in cohorts.values() for cell in kinds.values())
    figure.update_yaxes(range=[min(0.4, lowest - 0.03), 1.0], tickformat=".0%")
    return figure.update_layout(barmode="group")


def user_map(points: MapPoints) -> go.Figure:
    """Users on the two main directions of their embeddings."""
    figure = plain_figure("")
    names = sorted(set(points.group)) if points.group else ["users"]
    group = np.array(points.group) if points.group else np.full(len(points.x), "users")
    for number, name in enumerate(names):
        colour = _GROUPS[number % len(_GROUPS)]
        for seen, words in ((True, ""), (False, ", unseen")):
            mask = (group == name) & (points.seen == seen)
            if not mask.any():
                continue
            figure.add_scatter(
                x=np.round(points.x[mask], 4),
                y=np.round(points.y[mask], 4),
                mode="markers",
                name=f"{name}{words}",
                marker={
                    "color": colour,
                    "size": 5 if seen else 8,
                    "opacity": 0.6 if seen else 0.95,
                    "symbol": "circle" if seen else "diamond-open",
                },
            )
    figure.update_xaxes(title="first direction", showticklabels=False)
    figure.update_yaxes(title="second direction", showticklabels=False)
    return figure.update_layout(height=460, hovermode="closest")


def onboarding_curve(metrics: dict[str, Any]) -> go.Figure | None:
    """Accuracy on new users against the number of comparisons they were onboarded from."""
    points = metrics.get("onboarding", {}).get("curve")
    if not points:
        return None
    figure = plain_figure("Share of held-out choices ranked right")
    at = [str(point["comparisons"]) for point in points]
    values = np.array([point["value"] for point in points])
    figure.add_scatter(
        x=at,
        y=values,
        mode="lines+markers",
        name="Personalised, new users",
        line_color=_COLOURS["personalised"],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": np.array([point["high"] for point in points]) - values,
            "arrayminus": values - np.array([point["low"] for point in points]),
            "thickness": 1.2,
        },
    )
    for method in ("uniform", "oracle"):
        cell = metrics["accuracy"].get(method, {}).get("unseen", {}).get("all")
        if cell:
            figure.add_scatter(
                x=at,
                y=[cell["value"]] * len(at),
                mode="lines",
                name=METHOD_NAMES[method],
                line={"dash": "dash", "color": _COLOURS[method]},
            )
    figure.update_xaxes(title="comparisons answered", type="category")
    return figure.update_yaxes(tickformat=".0%")


def question_curves(metrics: dict[str, Any]) -> go.Figure | None:
    """Accuracy on new users by how many questions they have answered, well chosen and random, with bands of 95%."""
    questions = metrics.get("questions")
    if not questions:
        return None
    figure = plain_figure("Share of held-out choices ranked right")
    at = [point["answers"] for point in questions["points"]]
    for way, name, colour, band in (
        ("chosen", "Well-chosen questions", _COLOURS["personalised"], "rgba(47,111,222,0.15)"),
        ("random", "Random questions", "#e69f00", "rgba(230,159,0,0.15)"),
    ):
        cells = [point[way] for point in questions["points"]]
        figure.add_scatter(
            x=at + at[::-1],
            y=[cell["low"] for cell in cells] + [cell["high"] for cell in cells][::-1],
            fill="toself",
            fillcolor=band,
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
        )
        values = [cell["value"] for cell in cells]
        figure.add_scatter(x=at, y=values, mode="lines+markers", name=name, line_color=colour)
    lines = {"Uniform": (questions["uniform"]["value"], "dash")}
    if questions["needed"]:
        lines[f"{questions['share']:.0%} of the gain of {questions['answers']} random"] = (questions["target"], "dot")
    for name, (value, dash) in lines.items():
        line = {"dash": dash, "color": _COLOURS["uniform"]}
        figure.add_scatter(x=at, y=[value] * len(at), mode="lines", name=name, line=line)
    figure.update_xaxes(title="questions answered", tickvals=at, range=[0.5, len(at) + 0.5])
    return figure.update_yaxes(tickformat=".0%")


def graph_curves(metrics: dict[str, Any]) -> go.Figure | None:
    """Validation accuracy of every candidate encoder by step."""
    history = [record for record in metrics.get("graph", {}).get("history", []) if "candidate" in record]
    if not history:
        return None
    figure = plain_figure("Validation accuracy")
    names = list(dict.fromkeys(record["candidate"] for record in history))
    for number, name in enumerate(names):
        records = [record for record in history if record["candidate"] == name]
        figure.add_scatter(
            x=[record["step"] for record in records],
            y=[record["valid_accuracy"] for record in records],
            mode="lines",
            name=name,
            line_color=_GROUPS[number % len(_GROUPS)],
        )
    figure.update_xaxes(title="full-batch step")
    return figure.update_yaxes(tickformat=".0%")


def reward_curves(metrics: dict[str, Any]) -> go.Figure | None:
    """Validation accuracy of every head by step."""
    history = [record for record in metrics.get("reward", {}).get("history", []) if "valid_accuracy" in record]
    if not history:
        return None
    figure = plain_figure("Validation accuracy")
    for method in history[-1]["valid_accuracy"]:
        figure.add_scatter(
            x=[record["step"] for record in history],
            y=[record["valid_accuracy"][method] for record in history],
            mode="lines",
            name=METHOD_NAMES[method],
            line_color=_COLOURS[method],
        )
    figure.update_xaxes(title="step")
    return figure.update_yaxes(tickformat=".0%")


def expert_curves(metrics: dict[str, Any]) -> go.Figure | None:
    """Training loss of every model with adapters, by step."""
    history = [record for record in metrics.get("experts", {}).get("history", []) if "loss" in record]
    if not history:
        return None
    figure = plain_figure("Bradley–Terry loss")
    for method in history[-1]["loss"]:
        figure.add_scatter(
            x=[record["step"] for record in history],
            y=[record["loss"][method] for record in history],
            mode="lines",
            name=METHOD_NAMES[method],
            line_color=_COLOURS[method],
        )
    return figure.update_xaxes(title="step")


def expert_map(metrics: dict[str, Any]) -> go.Figure | None:
    """Which share of whom each expert gets: all seen users, all unseen, and each group. Of several experts alone."""
    experts = metrics.get("experts")
    if not experts or len(experts.get("load", {"seen": []})["seen"]) < 2:  # plain LoRA has none
        return None
    rows = {f"{cohort} users": load for cohort, load in experts["load"].items()}
    rows |= {f"group {name}": load for name, load in experts["by_group"].items()}
    figure = plain_figure("")
    figure.add_heatmap(
        z=list(rows.values()),
        x=[f"expert {number}" for number in range(len(experts["load"]["seen"]))],
        y=list(rows),
        zmin=0,
        zmax=1,
        colorscale=[[0, "rgba(47,111,222,0.04)"], [1, "#2f6fde"]],
        texttemplate="%{z:.0%}",
        showscale=False,
        xgap=2,
        ygap=2,
    )
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(height=120 + 34 * len(rows), margin={"l": 130, "r": 16, "t": 24, "b": 40})


def reliability(metrics: dict[str, Any]) -> go.Figure | None:
    """Accuracy against the model's own confidence; on the diagonal it means what it says."""
    calibration = metrics.get("calibration")
    if not calibration:
        return None
    figure = plain_figure("Share ranked right")
    figure.add_scatter(x=[0.5, 1], y=[0.5, 1], mode="lines", name="perfect", line={"dash": "dot", "color": "#8a8f98"})
    for method, cohorts in calibration.items():
        bins = (cohorts.get("seen") or cohorts.get("unseen"))["bins"]
        figure.add_scatter(
            x=[row["confidence"] for row in bins],
            y=[row["accuracy"] for row in bins],
            mode="lines+markers",
            name=METHOD_NAMES[method],
            line_color=_COLOURS[method],
        )
    figure.update_xaxes(title="confidence", tickformat=".0%")
    return figure.update_yaxes(tickformat=".0%")


def plain_figure(y_title: str) -> go.Figure:
    """An empty figure in the reports' looks."""
    grid = "rgba(128,128,128,0.25)"
    figure = go.Figure()
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#6b7280"},
        margin={"l": 56, "r": 16, "t": 64, "b": 48},
        height=400,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02},
    )
    figure.update_xaxes(gridcolor=grid, zeroline=False)
    figure.update_yaxes(gridcolor=grid, zeroline=False, title=y_title)
    return figure
