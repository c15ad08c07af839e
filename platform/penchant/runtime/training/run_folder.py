"""The folder of one run: who it belongs to, and which stages are done.

run.json          data set and settings that it belongs to
config.yaml       the settings, as `--config` takes them
prepared/         the data set in integer codes, and its features
graph/  reward/  experts/   what the stages left; `stage.json` says for which inputs
bundle/           the model
metrics.json  report.html
progress/         JSON lines: the learning curves
checkpoints/      Ray Train's
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penchant.artifacts import fingerprint, read_json, write_json, write_text
from penchant.config import dump_settings
from penchant.errors import OutputError
from penchant.runtime.training.config import FitSettings

_RUN = "run.json"
_DONE = "stage.json"


class RunFolder:
    """An --out folder.

    Args:
        path: The folder.
        dataset: Fingerprint of the data set.
        settings: What the run was asked for. Workers' settings do not make it another run.

    Raises:
        OutputError: The folder holds another run, or something else.
    """

    def __init__(self, path: Path, dataset: str, settings: FitSettings) -> None:
        self.path, self.dataset, self.settings = path.resolve(), dataset, settings
        decisive = settings.model_dump(mode="json", exclude={"workers"})
        identity = {"dataset": dataset, "settings": fingerprint(decisive)}
        if (self.path / _RUN).is_file():
            found = read_json(self.path / _RUN)
            differing = [name for name, value in identity.items() if found.get(name) != value]
            if differing:
                words = {"dataset": "another data set", "settings": "other settings"}
                raise OutputError(
                    f"The folder holds a run with {' and '.join(words[name] for name in differing)}.",
                    where=str(path),
                    fix="Choose another --out folder, or remove this one.",
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise OutputError(
                "It is not empty, and holds no run of penchant.", where=str(path), fix="Choose another --out folder."
            )
        write_json(self.path / _RUN, identity)
        write_text(self.path / "config.yaml", dump_settings(settings))

    def stage(self, name: str) -> Path:
        """The folder of a stage's results."""
        return self.path / name

    def log(self, name: str) -> Path:
        """The progress file of a stage."""
        return self.path / "progress" / f"{name}.jsonl"

    def is_done(self, name: str, inputs: Any) -> bool:
        """Whether the stage's results are there, made from the same inputs."""
        done = self.stage(name) / _DONE
        return done.is_file() and read_json(done) == {"inputs": fingerprint(inputs)}

    def mark_done(self, name: str, inputs: Any) -> None:
        """Says that the stage's results are whole."""
        write_json(self.stage(name) / _DONE, {"inputs": fingerprint(inputs)})

    def attempt(self, name: str, inputs: Any) -> str:
        """The name under which Ray Train keeps this stage's checkpoints: other inputs, other checkpoints."""
        return f"{name}-{fingerprint(inputs)[:10]}"
