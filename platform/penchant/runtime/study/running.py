"""Running what a study lacks. A fit is kept under what it was made from, so that parts share what they have in common."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from penchant import __version__
from penchant.artifacts import fingerprint, list_files, read_json, write_json
from penchant.data import PreferenceDataset
from penchant.data.changes import ChangeSettings, change_choices
from penchant.data.planted import save_planted
from penchant.errors import ConfigError
from penchant.runtime.study.settings import Cell, StudySettings, cells
from penchant.runtime.training.evaluation_stage import evaluate
from penchant.runtime.training.stages import Stages

_KEPT = {"metrics.json", "judgements.parquet", "config.yaml", "run.json", "row.json"}
"""What of a finished fit is kept: the rest can be made again, and a study has hundreds of fits."""


@dataclass(frozen=True)
class StudyRun:
    """A study in its folder.

    data/     planted worlds
    fits/     a folder for each fit: row.json (what it is), metrics.json, judgements.parquet, config.yaml
    """

    study: StudySettings
    out: Path
    data: Mapping[str, Path]
    """Folders of the data sets that are there."""
    digests: Mapping[str, str]
    """Fingerprints of their tables."""

    @classmethod
    def open(cls, study: StudySettings, out: Path, data: Mapping[str, Path]) -> StudyRun:
        """Takes a study up; worlds that it plants are generated.

        Raises:
            ConfigError: A folder is given for a data set that the study does not have.
        """
        unknown = set(data) - set(study.data)
        if unknown:
            raise ConfigError(
                f"The study has no data set {', '.join(sorted(unknown))}.", where="--data", fix=f"It has {', '.join(study.data)}."
            )
        found = dict(data)
        for name, world in study.planted.items():
            folder = out / "data" / f"{name}-{fingerprint(world.model_dump(mode='json'))[:8]}"
            if not folder.is_dir():
                save_planted(world, folder)
            found[name] = folder
        digests = {}
        for name, folder in found.items():
            digests[name] = fingerprint({file: value for file, value in list_files(folder).items() if file.endswith(".parquet")})
        return cls(study, out, found, digests)

    def cells(self, parts: Sequence[str] = ()) -> list[Cell]:
        """The fits whose data is there, of all parts or some.

        Raises:
            ConfigError: There is no such part.
        """
        unknown = set(parts) - set(self.study.parts)
        if unknown:
            known = ", ".join(self.study.parts)
            raise ConfigError(f"There is no part {', '.join(sorted(unknown))}.", where="--part", fix=f"There are {known}.")
        return [cell for cell in cells(self.study) if cell.data in self.data and (not parts or cell.part in parts)]

    def folder(self, cell: Cell) -> Path:
        """Where a fit is, or will be."""
        return self.out / "fits" / fingerprint(self._identity(cell))[:16]

    def is_done(self, cell: Cell) -> bool:
        """Whether a fit is there, whole."""
        return (self.folder(cell) / "row.json").is_file()

    def metrics(self, cell: Cell) -> dict[str, Any]:
        """The metrics of a fit that is done."""
        return read_json(self.folder(cell) / "metrics.json")

    def run(self, console: Console, *, parts: Sequence[str] = (), address: str | None = None, keep: bool = False) -> None:
        """Runs the fits that are missing, one after the other; those with the same data follow each other.

        Args:
            keep: Keep what a fit leaves besides its results.
        """
        missing = {self.folder(cell): cell for cell in self.cells(parts) if not self.is_done(cell)}
        console.print(f"{len(missing)} fits are missing.")
        # By data and change: a data set is read, changed and checked once for all its fits.
        order = sorted(missing.values(), key=lambda cell: (cell.data, cell.change.model_dump_json(), cell.seed))
        loaded: tuple[Any, PreferenceDataset] | None = None
        for number, cell in enumerate(order, 1):
            wanted = self._data_identity(cell)
            if loaded is None or loaded[0] != wanted:
                dataset = PreferenceDataset.load(self.data[cell.data])
                loaded = wanted, change_choices(dataset, cell.change, seed=cell.seed)
            at = "" if cell.value is None else f" at {cell.value}"
            console.rule(f"{number} of {len(order)}: {cell.part}, {cell.data}: {cell.row}{at}, seed {cell.seed}")
            folder = self.folder(cell)
            stages = Stages(loaded[1], cell.settings, folder, console, address=address)
            stages.fit()
            metrics = evaluate(stages)
            if not keep:
                _leave_results(folder)
            write_json(folder / "row.json", self._identity(cell) | {"seconds": metrics["run"]["seconds"]})

    def _data_identity(self, cell: Cell) -> list[Any]:
        # A change that does nothing is the same with every seed.
        changed = cell.change != ChangeSettings()
        return [self.digests[cell.data], cell.change.model_dump(mode="json"), cell.seed if changed else None]

    def _identity(self, cell: Cell) -> dict[str, Any]:
        return {
            "penchant": __version__,
            "name": cell.data,
            "data": self._data_identity(cell),
            "settings": cell.settings.model_dump(mode="json", exclude={"workers", "tracking"}),
        }


def _leave_results(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in _KEPT:
            path.unlink()
