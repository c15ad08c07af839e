"""Artefacts on disk: atomic writes, fingerprints, and the bundle's manifest.

Only safetensors (`tensors.py`), Parquet, JSON and YAML are written, never pickle. A folder becomes visible whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from penchant import __version__
from penchant.errors import ArtifactError, DataError, OutputError

BUNDLE_FORMAT = 1
MANIFEST = "manifest.json"
METHOD = "method.json"
"""What a method that makes no bundle leaves in the folder method/ of its run."""


def fingerprint(value: Any) -> str:
    """A stable sha256 hex digest of a JSON-like value (settings, names, other fingerprints)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """The sha256 hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_uri(path: Path) -> bool:
    """Whether it is what `Path` makes of a URI: `s3:/bucket`, a folder `s3:` here."""
    return bool(path.parts) and path.parts[0].endswith(":")


def refuse_uri(path: Path) -> None:
    """What is read from this machine alone.

    Raises:
        DataError: It is a URI.
    """
    if _is_uri(path):
        uri = path.as_posix().replace(":/", "://", 1)
        fix = "Copy it to this machine, and give the file or folder."
        raise DataError("This is read from this machine, not from a URI.", where=uri, fix=fix)


@contextlib.contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a refused write below `path` into an `OutputError` that says what to do.

    The libraries that write for us (safetensors, Arrow) raise errors of their own, which carry the reason as text.
    """
    if _is_uri(path):
        # It would become a folder of that name.
        raise OutputError("This goes to a local folder, not to a URI.", where=str(path), fix="Give a folder of this machine.")
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OutputError):
            raise
        number = getattr(error, "errno", None)
        text = str(error)
        if number == errno.ENOSPC or "No space left" in text:
            raise OutputError("The disk is full.", where=str(path), fix="Free some space and run it again.") from error
        if number in (errno.EACCES, errno.EROFS, errno.EPERM) or "Permission denied" in text:
            raise OutputError(
                "It cannot be written here.", where=str(path), fix="Choose a folder that you may write to."
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: a reader sees the old text or the new, never a part.

    Raises:
        OutputError: The disk is full or the folder may not be written.
    """
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically, indented for people.

    Raises:
        OutputError: The disk is full or the folder may not be written.
        ValueError: A number is not finite, for which JSON has no word: most readers refuse the whole file.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ArtifactError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError("There is no such file.", where=str(path), fix="Check the path.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"It is not JSON ({error}).", where=str(path), fix="Make it again.") from None


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; on success it takes the place of `path`, on any error it is removed.

    Raises:
        OutputError: The disk is full or the parent folder may not be written.
    """
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            os.chmod(temporary, 0o755)
            if path.exists():
                # Two renames: the old folder is whole under its hidden name until the new one stands.
                old = temporary.with_name(temporary.name + ".old")
                os.replace(path, old)
                try:
                    os.replace(temporary, path)
                except BaseException:
                    os.replace(old, path)
                    raise
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle is: enough to refuse a wrong one before any tensor is read."""

    name: str
    """A short id of the bundle's files and settings, as answers quote it."""
    dataset: str
    """Fingerprint of the data set it was trained on."""
    backbone: dict[str, Any]
    """Settings of the frozen base whose features the heads were trained on."""
    graph: dict[str, Any]
    """Settings of the graph encoder that was chosen."""
    reward: dict[str, Any]
    """Settings of the reward head."""
    counts: dict[str, int]
    """Users, responses and comparisons that it was trained on; and `forgotten`, where users were taken out since."""
    files: dict[str, str]
    """sha256 of every other file in the bundle, by relative path."""
    experts: dict[str, Any] = field(default_factory=dict)
    """Settings of the experts; empty for a bundle of the frozen phase alone."""
    onboarding: dict[str, Any] = field(default_factory=dict)
    """How unseen users are embedded, and the temperatures fitted on validation."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    penchant: str = __version__
    format: int = BUNDLE_FORMAT

    def write(self, folder: Path) -> None:
        """Writes `manifest.json` into a bundle's folder."""
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: str | Path, *, verify: bool = False) -> Manifest:
        """Reads a bundle's manifest; with `verify`, checks every file against its fingerprint.

        Raises:
            ArtifactError: Not a bundle, a newer format, a missing or altered file.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            for run in (folder, folder.parent):
                if (run / "method" / METHOD).is_file():
                    raise ArtifactError(
                        "This run is of a method that is for comparing, and has no bundle.",
                        where=str(run),
                        fix="What is served, scored and onboarded is a fit with method=penchant, the default.",
                    )
            raise ArtifactError(
                "This folder is not a bundle (it has no manifest.json).",
                where=str(folder),
                fix="Give the bundle/ folder that `penchant fit` left in its --out folder.",
            )
        values = read_json(folder / MANIFEST)
        found = values.get("format") if isinstance(values, dict) else None
        if not isinstance(found, int) or found > BUNDLE_FORMAT:
            raise ArtifactError(
                f"The bundle has format {found!r}; this penchant {__version__} reads up to {BUNDLE_FORMAT}.",
                where=str(folder / MANIFEST),
                fix="Upgrade penchant, or make the bundle again with this version.",
            )
        try:
            manifest = cls(**values)
        except TypeError as error:
            raise ArtifactError(
                f"The manifest is damaged ({error}).", where=str(folder / MANIFEST), fix="Make the bundle again."
            ) from None
        for name, expected in manifest.files.items():
            if not (folder / name).is_file():
                raise ArtifactError("A file of the bundle is missing.", where=str(folder / name), fix="Make it again.")
            if verify and file_fingerprint(folder / name) != expected:
                raise ArtifactError("It is not the file that was written.", where=str(folder / name), fix="Copy it again.")
        return manifest


def list_files(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder but the manifest, by relative POSIX path."""
    return {
        path.relative_to(folder).as_posix(): file_fingerprint(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
