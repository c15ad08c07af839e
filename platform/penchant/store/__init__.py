"""The user store of the online service: who chose what, what follows from it, and who may ask."""

from penchant.store.records import (
    Counts,
    ExportedComparison,
    KeyRecord,
    Receipt,
    Scope,
    StoredComparison,
    UserRecord,
)
from penchant.store.store import UserStore
from penchant.store.values import kept_comparisons

__all__ = [
    "Counts",
    "ExportedComparison",
    "KeyRecord",
    "Receipt",
    "Scope",
    "StoredComparison",
    "UserRecord",
    "UserStore",
    "kept_comparisons",
]
