"""HTML reports: one file that opens anywhere, with no network."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from penchant.artifacts import write_text


def write_page(path: Path, package: str, template: str, figures: Mapping[str, go.Figure | None], **values: Any) -> None:
    """Writes a report, atomically.

    Args:
        package: Where the template is.
        template: Its file. It sees `values`, `figures` (those that there are, by name) and `plotly`, the script they need.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    embedded = {name: _embed(figure, name) for name, figure in figures.items() if figure is not None}
    write_text(path, environment.from_string(source).render(figures=embedded, plotly=Markup(get_plotlyjs()), **values))


def _embed(figure: go.Figure, name: str) -> Markup:
    options = {"displayModeBar": False, "responsive": True}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{name}", config=options))
