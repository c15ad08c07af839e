"""The benchmarks that want a GPU, at tiny sizes, so that they work where one is to be had."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_benchmark_for_a_gpu_runs_at_a_small_size(tmp_path):
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / "benchmarks" / "gpu.sh"
    ran = subprocess.run(
        ["sh", script, "--small"], env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    small = script.read_text().split("else\n")[0]
    wanted = {line.split()[1].removesuffix(".py") for line in small.splitlines() if line.strip().startswith("run ")}
    written = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "runs" / "benchmarks").glob("*.json")}
    assert len(wanted) == 7
    for name in wanted:
        found = [rows for stem, rows in written.items() if stem.startswith(name)]
        assert found, name
        assert all(found), name
