"""Scripts import their helpers as neighbours; so do their tests."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(autouse=True)
def _neighbours(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
