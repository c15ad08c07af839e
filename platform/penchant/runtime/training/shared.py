"""What several fits or trials begin with alike: made once, by the first of them to come."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from penchant.artifacts import fingerprint, read_json, write_json

_MADE = "made.json"
_PREFIX = ".shared-"


@contextlib.contextmanager
def shared_folder(inside: Path) -> Iterator[Path]:
    """A folder for shared results that goes with whoever made it. One that was killed leaves its own behind, which goes now."""
    for path in inside.glob(f"{_PREFIX}*.lock"):
        with contextlib.suppress(Timeout), FileLock(path, timeout=0):  # let go by the system where its holder died
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=inside, prefix=_PREFIX) as folder:
        lock = Path(f"{folder}.lock")
        try:
            with FileLock(lock):
                yield Path(folder)
        finally:
            lock.unlink(missing_ok=True)


@dataclass(frozen=True)
class SharedResults:
    """A folder that all of them see."""

    path: Path

    def take(self, kind: str, inputs: Any, make: Callable[[Path], None]) -> tuple[Path, float]:
        """What is made of `inputs`; whoever comes while it is made waits.

        Args:
            kind: Of results; a folder each.
            inputs: Everything that they depend on, as JSON has it.
            make: Leaves the results in the folder that it is given, which may hold what one before it left unfinished.

        Returns:
            The folder of the results, and how many seconds it took to make them.
        """
        folder = self.path / kind / fingerprint(inputs)[:16]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # let go by the system where its holder dies
            if not (folder / _MADE).is_file():
                started = time.monotonic()
                make(folder)
                write_json(folder / _MADE, {"inputs": inputs, "seconds": round(time.monotonic() - started, 2)})
        return folder, read_json(folder / _MADE)["seconds"]
