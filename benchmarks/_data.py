"""The data set that a benchmark is given."""

import argparse
from pathlib import Path

from penchant.data.planted import PlantedWorld, save_planted

DEMO = "runs/demo-data"


def tables(folder: str) -> Path:
    """A folder of Parquet tables; the planted world of `make demo` is made if it is not there."""
    path = Path(folder)
    if folder == DEMO and not path.exists():
        save_planted(PlantedWorld(), path)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {folder}: penchant data import, or synth, writes one")
    return path
