"""`results.md`, with every table, and `results.html`, with the plots too; both from what the fits wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from penchant import __version__
from penchant.artifacts import write_text
from penchant.evaluation.figures import plain_figure
from penchant.evaluation.pages import write_page
from penchant.runtime.study.running import StudyRun
from penchant.runtime.study.settings import ENDS, PartSettings
from penchant.runtime.study.tables import Estimate, Line, part_lines

_COLUMNS = (("seen", "all"), ("seen", "common"), ("seen", "controversial"), ("unseen", "all"), ("unseen", "controversial"))
_PALETTE = ("#2f6fde", "#d1495b", "#2a9d6f", "#e69f00", "#cc79a7", "#56b4e9", "#7a5c3e", "#0072b2", "#f0e442")
_END_COLOURS = {"uniform": "#8a8f98", "oracle": "#3b3f45"}


def write_results(run: StudyRun, page: Path, *, command: str) -> None:
    """Writes the tables to `page`, and beside the study's fits `results.html`.

    Args:
        command: What prints these numbers, as the page says it.
    """
    study, figures, sections = run.study, {}, []
    text = [f"# {study.title}", "", f"Made by `{command}` with penchant {__version__} from what the fits wrote; not by hand.", ""]
    text += [
        "Share of held-out choices ranked right, in %, mean over seeds, with 95% intervals (two-way bootstrap over users and",
        "prompts). *Against* is the paired difference to the table's first row, in points, over the seeds that both have; where",
        "a setting is swept, to the first row at the same value, and of that row to its own first value. An interval that",
        "holds 0 shows none. The wrong user is the row's own model, given the embedding of another user.",
        "",
    ]
    text += [study.about.strip(), ""] if study.about else []
    for name, part in study.parts.items():
        text += [f"## {part.title}", "", *([part.about, ""] if part.about else [])]
        for data in part.data or study.data:
            lines = part_lines(run, name, data) if data in run.data else []
            wanted = [cell for cell in run.cells([name]) if cell.data == data]
            done = sum(run.is_done(cell) for cell in wanted)
            if not lines:
                text += [f"**{data}**: not run.", ""]
                continue
            missing = "" if done == len(wanted) else f" {len(wanted) - done} of {len(wanted)} fits are missing."
            if part.sweep and len({line.value for line in lines if line.value is not None}) < 2:
                text += [f"**{data}**: run at one value alone.{missing}", ""]
                continue
            text += [f"**{data}**.{missing}", "", *markdown(part, lines), ""]
            key = f"{name}-{data}".replace(".", "-")
            figures[key] = part_figure(part, lines)
            sections.append({"title": f"{part.title}: {data}", "about": part.about, "figure": key})
    write_text(page, "\n".join(text).rstrip() + "\n")
    write_page(run.out / "results.html", __package__, "results.html.jinja", figures, title=study.title, sections=sections)


def markdown(part: PartSettings, lines: list[Line]) -> list[str]:
    """A part's table for one data set."""
    columns = [cell for cell in _COLUMNS if any(cell in line.accuracy for line in lines)]
    head = ["row", *([part.sweep.title] if part.sweep else []), "seeds"]
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


def part_figure(part: PartSettings, lines: list[Line]) -> go.Figure:
    """Seen and unseen users' accuracy: bars by row, or lines over the sweep, where those of the unseen are a click away."""
    figure = plain_figure("Share of held-out choices ranked right")
    figure.update_yaxes(tickformat=".0%")
    cohorts = [cohort for cohort in ("seen", "unseen") if any((cohort, "all") in line.accuracy for line in lines)]
    if part.sweep is None:
        for number, cohort in enumerate(cohorts):
            figure.add_bar(name=cohort, marker_color=_PALETTE[number], **_points(lines, cohort, lambda line: line.row))
        return figure.update_layout(barmode="group").update_yaxes(range=[0.4, 1.0])
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
    return figure.update_xaxes(title=part.sweep.title, type="category")


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
