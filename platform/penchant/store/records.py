"""What goes into the user store and what comes out. Every instant has a time zone: UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penchant.data.choices import TextComparison

Scope = Literal["score", "onboard", "admin"]
"""What a key allows."""


@dataclass(frozen=True)
class StoredComparison(TextComparison):
    """A choice, and when it was stored."""

    created: datetime


@dataclass(frozen=True)
class ExportedComparison(StoredComparison):
    """A stored comparison, and whose it is."""

    tenant: str
    user: str


@dataclass(frozen=True)
class UserRecord:
    """What is known of a user, but for the comparisons themselves."""

    tenant: str
    user: str
    version: int
    """Of the user's state: never used again for another state or user, not even after a deletion."""
    comparisons: int
    forgotten: bool
    """Whether the user was once deleted and has to stay unknown to a bundle that was trained on them."""
    created: datetime
    updated: datetime
    embeddings: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, compare=False)
    """Bundle -> the embedding (D,) that was saved for exactly this version."""


@dataclass(frozen=True)
class Receipt:
    """Comparisons are stored: it is given only after the commit."""

    version: int
    comparisons: int
    """How many comparisons the user had after these."""
    replayed: bool
    """Whether an earlier request with the same idempotency key had stored them already."""


@dataclass(frozen=True)
class Counts:
    """How much is stored."""

    users: int
    """Users with a comparison at least."""
    comparisons: int


@dataclass(frozen=True)
class KeyRecord:
    """A key to the service, without its secret."""

    id: int
    tenant: str
    scopes: tuple[Scope, ...]
    name: str
    created: datetime
    expires: datetime | None
    revoked: datetime | None

    def valid(self, now: datetime) -> bool:
        """Whether the key opens anything at this instant (which needs a time zone)."""
        return self.revoked is None and (self.expires is None or now < self.expires)
