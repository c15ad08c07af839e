"""The user store of the online service: who chose what, what follows from it, and who may ask."""

from penchant.store.records import (
    Choice,
    Counts,
    ExportedComparison,
    KeyRecord,
    Receipt,
    Scope,
    StoredComparison,
    UserRecord,
)
from penchant.store.store import UserStore
from penchant.store.values import latest_choices

__all__ = [
    "Choice",
    "Counts",
    "ExportedComparison",
    "KeyRecord",
    "Receipt",
    "Scope",
    "StoredComparison",
    "UserRecord",
    "UserStore",
    "latest_choices",
]
