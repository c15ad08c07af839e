"""The page with every table, and the one with the plots; both from a study's results alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from penchant.artifacts import write_text
from penchant.evaluation.figures import plain_figure
from penchant.evaluation.pages import write_page
from penchant.runtime.study.results import Part, StudyResults, Table
from penchant.runtime.study.settings import ENDS
from penchant.runtime.study.tables import Estimate, Line

_COLUMNS = (("seen", "all"), ("seen", "common"), ("seen", "controversial"), ("unseen", "all"), ("unseen", "controversial"))
_PALETTE = ("#2f6fde", "#d1495b", "#2a9d6f", "#e69f00", "#cc79a7", "#56b4e9", "#7a5c3e", "#0072b2", "#f0e442")
_END_COLOURS = {"uniform": "#8a8f98", "oracle": "#3b3f45"}


def write_tables(results: StudyResults, path: Path) -> None:
    """Writes the tables, as Markdown."""
    text = [f"# {results.title}", ""]
    text += [f"Made by `{results.command}` with penchant {results.version} from what the fits wrote; not by hand.", ""]
    text += [
        "Share of held-out choices ranked right, in %, mean over seeds, with 95% intervals (two-way bootstrap over users and",
        "prompts). *Against* is the paired difference to the table's first row, in points, over the seeds that both have; where",
        "a setting is swept, to the first row at the same value, and of that row to its own first value. An interval that",
        "holds 0 shows none. The wrong user is the row's own model, given the embedding of another user.",
        "",
    ]
    text += [results.about.strip(), ""] if results.about else []
    for name, part in results.parts.items():
        text += [f"## {part.title}", "", *([part.about, ""] if part.about else [])]
        for table in results.tables:
            if table.part == name:
                text += _section(part, table)
    write_text(path, "\n".join(text).rstrip() + "\n")


def _section(part: Part, table: Table) -> list[str]:
    if not table.lines:
        return [f"**{table.data}**: not run.", ""]
    missing = "" if not table.missing else f" {table.missing} of {table.fits} fits are missing."
    if not _is_shown(part, table):
        return [f"**{table.data}**: run at one value alone.{missing}", ""]
    return [f"**{table.data}**.{missing}", "", *markdown(part, table.lines), ""]


def _is_shown(part: Part, table: Table) -> bool:
    """Whether there is something to compare: of a sweep, two values."""
    values = {line.value for line in table.lines if line.value is not None}
    return bool(table.lines) and (part.sweep is None or len(values) > 1)


def write_plots(results: StudyResults, path: Path) -> None:
    """Writes the plots: one file of HTML that opens anywhere."""
    figures, sections = {}, []
    for table in results.tables:
        part = results.parts[table.part]
        if _is_shown(part, table):
            key = f"{table.part}-{table.data}".replace(".", "-")
            figures[key] = part_figure(part, table.lines)
            sections.append({"title": f"{part.title}: {table.data}", "about": part.about.replace("`", ""), "figure": key})
    write_page(path, __package__, "results.html.jinja", figures, title=results.title, sections=sections)


def markdown(part: Part, lines: list[Line]) -> list[str]:
    """A part's table for one data set."""
    columns = [cell for cell in _COLUMNS if any(cell in line.accuracy for line in lines)]
    head = ["row", *([part.sweep] if part.sweep else []), "seeds"]
    head += [f"{cohort}, {kind}" if kind != "all" else cohort for cohort, kind in columns]
    head += ["against, seen", "wrong user, seen", "s a fit"]
    table = [head, ["---"] * len(head)]
    for line in lines:
        cells = [line.row, *([_plain(line.value)] if part.sweep else []), str(line.seeds)]
        cells += [_share(line.accuracy.get(cell)) for cell in columns]
        cells += [_share(line.gain.get(("seen", "all")), signed=True), _share(line.wrong.get(("seen", "all")))]
        cells.append("" if line.seconds is None else f"{line.seconds:.0f}")
        table.append(cells)
    return ["| " + " | ".join(row) + " |" for row in table]


def part_figure(part: Part, lines: list[Line]) -> go.Figure:
    """Seen and unseen users' accuracy: bars by row, or lines over the sweep, where those of the unseen are a click away."""
    figure = plain_figure("Choices ranked right")
    figure.update_yaxes(tickformat=".0%")
    cohorts = [cohort for cohort in ("seen", "unseen") if any((cohort, "all") in line.accuracy for line in lines)]
    if part.sweep is None:
        for number, cohort in enumerate(cohorts):
            figure.add_bar(name=cohort, marker_color=_PALETTE[number], **_points(lines, cohort, lambda line: line.row))
        return figure.update_layout(barmode="group", height=520).update_yaxes(range=[0.4, 1.0])  # rows have long names
    rows = [row for row in part.rows if any(line.row == row for line in lines)]
    for row in [*rows, *ENDS]:
        own = [line for line in lines if line.row == row]
        if not own:
            continue
        colour = _PALETTE[rows.index(row) % len(_PALETTE)] if row in rows else _END_COLOURS[row]
        if own[0].value is None:  # the sweep does not move it
            estimate = own[0].accuracy.get((cohorts[0], "all"))
            if estimate is not None:
                figure.add_hline(y=estimate.value, line_dash="dot", line_color=colour, annotation_text=f"{row}, {cohorts[0]}")
            continue
        dashes = ("solid", "dash") if row in rows else ("dot", "dashdot")
        for cohort, dash in zip(cohorts, dashes, strict=False):
            line_style = {"color": colour, "dash": dash}
            shown = {} if cohort == cohorts[0] else {"visible": "legendonly"}  # both at once are too many lines to read
            points = _points(own, cohort, lambda line: _plain(line.value))
            figure.add_scatter(name=f"{row}, {cohort}", mode="lines+markers", line=line_style, **shown, **points)
    return figure.update_xaxes(title=part.sweep, type="category")


def _points(lines: list[Line], cohort: str, label: Callable[[Line], str]) -> dict[str, Any]:
    found = [(label(line), line.accuracy[cohort, "all"]) for line in lines if (cohort, "all") in line.accuracy]
    values = [estimate.value for _, estimate in found]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [estimate.high - estimate.value for _, estimate in found],
        "arrayminus": [estimate.value - estimate.low for _, estimate in found],
        "thickness": 1.2,
    }
    return {"x": [name for name, _ in found], "y": values, "error_y": error}


def _share(estimate: Estimate | None, *, signed: bool = False) -> str:
    if estimate is None:
        return ""
    value, low, high = (round(100 * number, 1) + 0.0 for number in (estimate.value, estimate.low, estimate.high))  # no -0.0
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]" if signed else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
