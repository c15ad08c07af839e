"""How Sphinx builds this folder: `make docs`. Nothing is fetched, neither while building nor by a reader's browser.

`make linkcheck` follows links to other sites, with the same configuration; it needs a network.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.logging import getLogger

import penchant.runtime.serving.application  # noqa: F401 - autodoc rewrites BaseModel's annotations; so its models come first
from penchant import __version__
from penchant.runtime.study.page import write_plots
from penchant.runtime.study.results import read_results

logging.getLogger("alembic").setLevel(logging.WARNING)

project = "Penchant"
copyright = "the Penchant authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["README.md", "templates"]  # index.rst includes the first
html_theme = "furo"
html_title = f"Penchant {release}"
html_copy_source = False
html_show_sphinx = False
nitpicky = True
highlight_language = "none"  # where a block does not say its own

# Pages: GitHub's Markdown and its anchors, formulas between dollars.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

# `make linkcheck`. A heading of a page on GitHub is put there by a script, so its anchor is not in what is fetched.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/"]

# The reference: a page for each package, which `sphinx-apidoc` makes, from the docstrings of its modules.
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
default_role = "py:obj"  # `name` in a docstring: a link where there is such a thing, else code
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:.*", r"(?!penchant\.).*"),  # what other libraries document
    ("py:class", r"penchant\.(.*\.)?(_\w+|[a-z]\w*|\w+[a-z]T)"),  # private classes, functions that check a value, type variables
]


def name_exactly(app: Sphinx, page: nodes.document) -> None:
    """A plain name means what it means in its module or class, not whatever else is called so; `.name` may be anything."""
    for reference in page.findall(pending_xref):
        if not reference.get("refspecific", True):
            del reference["refspecific"]


def read_sections(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Args, Raises and the like become fields. An attribute's text has none, and its colons are just colons."""
    if what not in {"attribute", "data", "property"}:
        lines[:] = GoogleDocstring(list(lines), Config(), app, what, name, thing, options).lines()


def to_mathml(node: nodes.Node, display: str) -> str:
    """A formula as MathML. What the converter does not know it lets through as text, so that is looked for."""
    result = latex2mathml.converter.convert(node.astext(), display=display)
    if "\\" in result:
        getLogger(__name__).warning("a formula has a command without MathML: %s", node.astext(), location=node)
    return result


def show_inline(translator: Any, node: nodes.math) -> None:
    """An inline formula."""
    translator.body.append(to_mathml(node, "inline"))
    raise nodes.SkipNode


def show_block(translator: Any, node: nodes.math_block) -> None:
    """A formula on lines of its own."""
    translator.body.append(to_mathml(node, "block"))
    raise nodes.SkipNode


def draw_plots(app: Sphinx, problem: Exception | None) -> None:
    """The plots of every study whose numbers are here: plots/NAME.html."""
    for path in sorted(Path(app.srcdir).glob("results*.json")):
        if problem is None and app.builder.format == "html":
            write_plots(read_results(path), Path(app.outdir, "plots", f"{path.stem}.html"))


def link_plots(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """A study's tables say where its plots are, which there are in the built documentation alone."""
    if Path(app.srcdir, f"{page}.json").is_file():
        before, heading, after = context["body"].partition("</h1>")
        context["body"] = f'{before}{heading}\n<p><a href="plots/{page}.html">The same as plots</a></p>{after}'


def setup(app: Sphinx) -> None:
    """Docstrings in Google's style; formulas as MathML, which browsers show by themselves; the studies' plots."""
    app.connect("html-page-context", link_plots)
    app.connect("build-finished", draw_plots)
    app.connect("autodoc-process-docstring", read_sections)
    app.connect("doctree-read", name_exactly)
    app.add_html_math_renderer("mathml", inline_renderers=(show_inline, None), block_renderers=(show_block, None))
