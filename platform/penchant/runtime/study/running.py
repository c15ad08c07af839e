"""Running what a study lacks. A fit is kept under what it was made from, so that parts share what they have in common."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from penchant import __version__
from penchant.artifacts import fingerprint, list_files, read_json
from penchant.data import PreferenceDataset
from penchant.data.changes import ChangeSettings, change_choices
from penchant.data.planted import save_planted
from penchant.errors import ConfigError, PenchantError
from penchant.runtime.cluster import start_ray
from penchant.runtime.progress import progress_bar
from penchant.runtime.study.fits import Fit, fit, fit_side_by_side, places
from penchant.runtime.study.settings import Cell, StudySettings, cells
from penchant.runtime.training.shared import SharedResults, shared_folder
from penchant.runtime.training.stages import Stages


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
            ConfigError: A folder is given for a data set that the study does not have or generates, or is not there.
        """
        wanted = [name for name in study.data if name not in study.planted]
        unknown = set(data) - set(wanted)
        if unknown:
            raise ConfigError(
                f"The study takes no folder for {', '.join(sorted(unknown))}.",
                where="--data",
                fix=f"It does for {', '.join(wanted) or 'no data set'}; it generates planted worlds itself.",
            )
        for name, folder in data.items():
            if not folder.is_dir():
                raise ConfigError(f"There is no folder {folder}.", where=f"--data {name}", fix="Give a folder of Parquet tables.")
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

    def cells(self, parts: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Cell]:
        """The fits whose data is there, of all parts and seeds or some.

        Raises:
            ConfigError: There is no such part, or no fit with such a seed.
        """
        unknown = set(parts) - set(self.study.parts)
        if unknown:
            known = ", ".join(self.study.parts)
            raise ConfigError(f"There is no part {', '.join(sorted(unknown))}.", where="--part", fix=f"There are {known}.")
        there = [cell for cell in cells(self.study) if cell.data in self.data and (not parts or cell.part in parts)]
        strange = set(seeds) - {cell.seed for cell in there}
        if there and strange:
            raise ConfigError(f"No fit has the seed {min(strange)}.", where="--seed", fix="The study's YAML lists its seeds.")
        return [cell for cell in there if not seeds or cell.seed in seeds]

    def folder(self, cell: Cell) -> Path:
        """Where a fit is, or will be."""
        return self.out / "fits" / fingerprint(self._identity(cell))[:16]

    def is_done(self, cell: Cell) -> bool:
        """Whether a fit is there, whole."""
        return (self.folder(cell) / "row.json").is_file()

    def metrics(self, cell: Cell) -> dict[str, Any]:
        """The metrics of a fit that is done."""
        return read_json(self.folder(cell) / "metrics.json")

    def run(
        self,
        console: Console,
        *,
        parts: Sequence[str] = (),
        seeds: Sequence[int] = (),
        address: str | None = None,
        keep: bool = False,
        at_once: int | None = None,
    ) -> list[PenchantError]:
        """Runs the fits that are missing; those with the same data follow each other. Returns what those raised that failed.

        Args:
            parts, seeds: These alone; by default all.
            keep: Keep what a fit leaves besides its results.
            at_once: Fits side by side; by default one a GPU, or one a core where there is no GPU. A fit that is alone has all
                workers, and goes on from its last checkpoint where it was interrupted.
        """
        missing = {self.folder(cell): cell for cell in self.cells(parts, seeds) if not self.is_done(cell)}
        console.print(f"{len(missing)} fits are missing.")
        if not missing:
            return []
        # By data and change: a data set is read, changed and checked once for all its fits.
        order = sorted(missing.values(), key=lambda cell: (cell.data, cell.change.model_dump_json(), cell.seed))
        start_ray(address)
        at_once = min(at_once or places(), len(order))
        failed: list[PenchantError] = []
        with shared_folder(self.out) as shared:
            left = Counter(self._shared(cell, shared) for cell in order)
            if at_once == 1:
                done = self._one_by_one(order, shared, console, keep=keep)
            else:
                done = self._side_by_side(order, shared, console, keep=keep, at_once=at_once)
            for work, outcome in done:
                console.print(f"{work.title}: {outcome}", highlight=False, markup=False, soft_wrap=True)
                failed += [outcome] if isinstance(outcome, PenchantError) else []
                left[work.shared] -= 1
                if not left[work.shared]:
                    shutil.rmtree(work.shared.path, ignore_errors=True)
        return failed

    def _one_by_one(
        self, order: Sequence[Cell], shared: Path, console: Console, *, keep: bool
    ) -> Iterator[tuple[Fit, str | PenchantError]]:
        for number, (work, dataset) in enumerate(self._works(order, shared), 1):
            console.rule(f"{number} of {len(order)}: {work.title}")
            try:
                yield work, dataset if isinstance(dataset, PenchantError) else fit(work, dataset, console, keep=keep)
            except PenchantError as error:
                yield work, error

    def _side_by_side(
        self, order: Sequence[Cell], shared: Path, console: Console, *, keep: bool, at_once: int
    ) -> Iterator[tuple[Fit, str | PenchantError]]:
        self._read_texts(order, shared, console)
        with progress_bar(console, "Fits") as say:
            say(0, len(order), f"{at_once} at once")
            for number, ended in enumerate(fit_side_by_side(self._works(order, shared), at_once=at_once, keep=keep), 1):
                yield ended
                say(number, len(order))

    def _read_texts(self, order: Sequence[Cell], shared: Path, console: Console) -> None:
        """Reads what no fit has read, by all workers: fits side by side would each read the same texts."""
        alike: dict[tuple[str, str], list[Cell]] = {}
        for cell in order:
            alike.setdefault((cell.data, cell.settings.backbone.model_dump_json()), []).append(cell)
        for group in alike.values():
            for work, dataset in self._works(group, shared):
                if isinstance(dataset, PenchantError):
                    continue
                with contextlib.suppress(PenchantError):  # of this fit, which will say so itself
                    Stages(dataset, work.settings, work.folder, console).prepare()
                    break

    def _works(self, order: Sequence[Cell], shared: Path) -> Iterator[tuple[Fit, PreferenceDataset | PenchantError]]:
        """The fits, each with its data, or with why that cannot be used.

        Args:
            shared: Folder of what they have in common.
        """
        loaded: tuple[Any, PreferenceDataset | PenchantError] | None = None
        for cell in order:
            wanted = self._data_identity(cell)
            if loaded is None or loaded[0] != wanted:
                try:
                    dataset = PreferenceDataset.load(self.data[cell.data])
                    loaded = wanted, change_choices(dataset, cell.change, seed=cell.seed)
                except PenchantError as error:
                    loaded = wanted, error
            at = "" if cell.value is None else f" at {cell.value}"
            title = f"{cell.part}, {cell.data}: {cell.row}{at}, seed {cell.seed}"
            yield Fit(title, self.folder(cell), cell.settings, self._shared(cell, shared), self._identity(cell)), loaded[1]

    def _shared(self, cell: Cell, folder: Path) -> SharedResults:
        # By data: it is of no use to fits of other data, and is removed with the last of its own.
        return SharedResults(folder / fingerprint(self._data_identity(cell))[:16])

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
