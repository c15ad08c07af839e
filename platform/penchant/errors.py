"""One tree of errors. Every error that a user can cause says what is wrong, where, and what to do about it.

Each error is also a subclass of the built-in it specialises, and survives pickling (it may cross a process or a cluster).
"""

from __future__ import annotations


class PenchantError(Exception):
    """What is wrong, where it is, and what to do.

    Args:
        what: The problem, in one sentence, with the offending value.
        where: The file, row, key or stage it was found in.
        fix: What the reader can do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        located = f"{self.where}: {self.what}" if self.where else self.what
        return f"{located} {self.fix}" if self.fix else located

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(kind: type[PenchantError], what: str, where: str, fix: str) -> PenchantError:
    return kind(what, where=where, fix=fix)


class ConfigError(PenchantError, ValueError):
    """A configuration key or value that cannot be used."""


class DataError(PenchantError, ValueError):
    """A table, row or value that breaks the data contract."""


class BackboneError(PenchantError, ValueError):
    """A base model that is missing, cannot be loaded or cannot be used as asked."""


class ArtifactError(PenchantError, ValueError):
    """A bundle, cache or checkpoint that is damaged, foreign or of another format."""


class OutputError(PenchantError, OSError):
    """A place that cannot be written: occupied by another run, not writable, or full."""

    __str__ = PenchantError.__str__


class StorageError(PenchantError, OSError):
    """A remote place that cannot be reached, refuses, or does not hold what it should."""

    __str__ = PenchantError.__str__


class TrainingError(PenchantError, RuntimeError):
    """A training stage that could not go on."""


class StoreError(PenchantError, RuntimeError):
    """The user store could not do what was asked; the same request may be tried again."""
