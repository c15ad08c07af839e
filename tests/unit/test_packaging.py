"""What is installed is what stands here: setuptools takes packages, and of other files those that pyproject.toml names."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "platform" / "penchant"
PATTERNS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]


def files():
    return {path for path in LIBRARY.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_every_file_of_the_library_is_installed():
    taken = {
        path
        for package, patterns in PATTERNS.items()
        for pattern in patterns
        for path in ROOT.joinpath("platform", *package.split(".")).glob(pattern)
    }
    others = {path for path in files() if path.suffix != ".py"}
    names = {path.name for path in others}
    assert {"report.html.jinja", "index.html", "playground.js", "playground.css"} <= names, "the page and the report are there"
    assert sorted(others - taken) == []


def test_every_module_is_in_a_package():
    """Alembic's migrations are found by their folder: one without `__init__.py` would not be installed."""
    modules = {path for path in files() if path.suffix == ".py"}
    assert LIBRARY / "store" / "migrations" / "env.py" in modules
    assert sorted(path for path in modules if not (path.parent / "__init__.py").is_file()) == []
