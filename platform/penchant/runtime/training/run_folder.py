"""The folder of one run: who it belongs to, and which stages are done::

    run.json          data set and settings that it belongs to, and its id
    config.yaml       the settings, as `--config` takes them
    prepared/         the data set in integer codes, and its features
    graph/  reward/  experts/   what the stages left; `stage.json` says for which inputs
    bundle/           the model
    method/           in place of graph/ to bundle/: another method than Penchant's (plain LoRA has reward/ and experts/ too)
    metrics.json  report.html  judgements.parquet
    progress/         JSON lines: the learning curves
    tensorboard/      the same for TensorBoard, where it was asked for
    checkpoints/      Ray Train's
    work/             what workers leave for the driver, while a stage runs; of a remote run alone

A run's folder may be remote. The driver then works in a local mirror, in the cache: what a stage needs is pulled if it was made
elsewhere, and what a stage has made is published when it is done. Workers find everything by URI, so nodes need share no disk.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from penchant.artifacts import fingerprint, read_json, write_json, write_text
from penchant.config import dump_settings
from penchant.errors import OutputError
from penchant.runtime.training.config import FitSettings
from penchant.storage import Location, MirroredFolder, add_files, collect_files, join, remove

_RUN = "run.json"
_DONE = "stage.json"


def check_run_folder(folder: Path) -> None:
    """Whether a run could start or go on in a folder of this machine. Nothing is written.

    Raises:
        OutputError: The folder holds something else than a run.
    """
    MirroredFolder(folder, identity=_RUN, growing=())


class RunFolder(MirroredFolder):
    """An --out folder.

    Args:
        where: The folder, or its URI.
        dataset: Fingerprint of the data set.
        settings: What the run was asked for. Who works and who watches do not make it another run.

    Raises:
        OutputError: The folder holds another run, or something else.
        StorageError: The URI cannot be reached, or not be written.
    """

    def __init__(self, where: Location, dataset: str, settings: FitSettings) -> None:
        super().__init__(where, identity=_RUN, growing=["progress/"])
        self.dataset, self.settings = dataset, settings
        # The default method's name is left out: runs that are older than the choice stay what they are.
        undecisive = {"workers", "tracking"} | ({"method"} if settings.method.name == "penchant" else set())
        decisive = settings.model_dump(mode="json", exclude=undecisive)
        identity, found = {"dataset": dataset, "settings": fingerprint(decisive)}, {}
        if (self.path / _RUN).is_file():
            found = read_json(self.path / _RUN)
            differing = [name for name, value in identity.items() if found.get(name) != value]
            if differing:
                words = {"dataset": "another data set", "settings": "other settings"}
                raise OutputError(
                    f"The folder holds a run with {' and '.join(words[name] for name in differing)}.",
                    where=str(where),
                    fix="Choose another --out folder, or remove this one.",
                )
        self.id: str = found.get("id") or uuid.uuid4().hex[:12]
        """Of this run and no other, for whatever tracks it."""
        write_json(self.path / _RUN, identity | {"id": self.id})
        write_text(self.path / "config.yaml", dump_settings(settings))
        self.share(_RUN, "config.yaml")

    def add(self, *names: str) -> None:
        """Adds the files of folders to those that machines before this one have left, where the run is remote.

        Raises:
            StorageError: They cannot be written there.
        """
        for name in names:
            if self.uri is not None and (self.path / name).is_dir():
                add_files(self.path / name, join(self.uri, name))

    def stage(self, name: str) -> Path:
        """The folder of a stage's results."""
        return self.path / name

    def log(self, name: str) -> Path:
        """The progress file of a stage."""
        return self.path / "progress" / f"{name}.jsonl"

    def is_done(self, name: str, inputs: Any) -> bool:
        """Whether the stage's results are there, made from the same inputs; then they are in its folder."""
        done = self.stage(name) / _DONE
        return self.bring(name) and done.is_file() and read_json(done) == {"inputs": fingerprint(inputs)}

    def mark_done(self, name: str, inputs: Any) -> None:
        """Says that the stage's results are whole."""
        write_json(self.stage(name) / _DONE, {"inputs": fingerprint(inputs)})
        self.share(name)

    def results(self, attempt: str, name: str) -> str:
        """Where workers leave what becomes the folder `name`: in it, or where the driver fetches it from."""
        return str(self.path / name) if self.uri is None else join(self.uri, "work", attempt)

    def collect(self, attempt: str, name: str) -> None:
        """Makes the folder `name` of what the workers have left. Nothing is to be done where they see it."""
        if self.uri is not None:
            collect_files(self.results(attempt, name), self.path / name)
            remove(self.results(attempt, name))

    def attempt(self, name: str, inputs: Any) -> str:
        """The name under which Ray Train keeps this stage's checkpoints: other inputs, other checkpoints."""
        return f"{name}-{fingerprint(inputs)[:10]}"
