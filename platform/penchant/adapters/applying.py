"""A bounded set of loaded adapters: whoever is in a batch is pinned, the others go by when they were last used.

What a user has is looked up on disk each time (one `stat`), so that a new adapter is used, and a deleted one is gone, at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import PeftConfig
from torch import Tensor

from penchant.adapters.bases import base_fingerprint
from penchant.adapters.store import AdapterStore
from penchant.backbone.grouped import GroupedModel
from penchant.errors import ArtifactError, ConfigError, PenchantError

How = Literal["own", "task", "damaged"]
"""Which adapter a row goes through: the user's own; none, since the user has none; or none, since the user's cannot be read."""

_LOADERS = 8
"""Adapters that are read at the same time."""


_Version = tuple[int, bytes]
"""Of an adapter on disk, and a digest of the key it was opened with: another key, or none, does not get what this one opened."""


def grouped_model(base: Any, store: AdapterStore, *, slots: int) -> GroupedModel:
    """A model over a base, whose slots take the adapters of a store.

    Raises:
        ArtifactError: The store's adapters are not of this base.
        BackboneError: It is a kind of adapter that is not grouped.
    """
    store.check_base(base_fingerprint(base))
    return GroupedModel(base, PeftConfig.from_peft_type(**store.config), slots=slots)


@dataclass(frozen=True)
class Pinned:
    """The adapters of a batch."""

    slot: Tensor
    """int64 (B,)"""
    how: list[How]
    """(B,)"""
    problems: dict[str, PenchantError]
    """Why a user's adapter cannot be used."""


@dataclass(eq=False)
class _Resident:
    """A user in a slot."""

    slot: int
    version: _Version
    loaded: Future[None] = field(default_factory=Future)
    pins: int = 0
    stale: bool = False
    """The user has another adapter now, or none: the slot is free once nobody uses it."""


class AdapterPool:
    """Adapters of a store in the slots of a grouped model. Safe for threads.

    Args:
        model: Its slots are how many adapters are in memory at most.
        store: Where they come from.

    Raises:
        ArtifactError: The store's adapters are of another kind than the model's.
    """

    def __init__(self, model: GroupedModel, store: AdapterStore) -> None:
        store.check_shapes(model.shapes)
        self.model, self.store = model, store
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._free = list(reversed(range(model.slots)))
        self._changed = threading.Condition()
        self._loaders = ThreadPoolExecutor(_LOADERS, thread_name_prefix="penchant-adapters")
        self.loads = 0
        """Adapters read from disk so far."""
        self.evictions = 0
        """Adapters that made room for others so far."""

    def __len__(self) -> int:
        """Users in memory."""
        return len(self._residents)

    def __contains__(self, user: str) -> bool:
        return user in self._residents

    def close(self) -> None:
        """Ends the threads that read adapters."""
        self._loaders.shutdown()

    @contextlib.contextmanager
    def pinned(self, users: Sequence[str], keys: Mapping[str, bytes] | None = None) -> Iterator[Pinned]:
        """Holds the adapters of a batch's users (B,) in memory while the block runs; those that are not there are read first.

        Waits where other batches hold too many; whoever is read meanwhile does not wait for this one. A user whose adapter
        cannot be read gets the task model, and `how` says so; the others in the batch never notice.

        Args:
            keys: Those of users whose adapters are encrypted. A key is asked for each time, though the adapter be in memory.

        Raises:
            ConfigError: The batch has more users than the model has slots.
        """
        keys = keys or {}
        versions = {user: self.store.version(user) for user in dict.fromkeys(users)}
        digests = {user: hashlib.sha256(keys[user]).digest() if user in keys else b"" for user in versions}
        held = self._hold({user: (version, digests[user]) for user, version in versions.items() if version is not None}, keys)
        try:
            for user in versions.keys() - held.keys():
                with self._changed:
                    self._retire(user)
            problems = self._await(held)
            how: list[How] = ["damaged" if user in problems else "own" if user in held else "task" for user in users]
            slots = [held[user].slot if own == "own" else self.model.nobody for user, own in zip(users, how, strict=True)]
            yield Pinned(torch.tensor(slots, device=self._device), how, problems)
        finally:
            self._release(held)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.model.stacked.values())).device

    def _hold(self, versions: dict[str, _Version], keys: Mapping[str, bytes]) -> dict[str, _Resident]:
        """Gives every user a slot, all at once: two batches that each held a half and waited would wait for ever."""
        if len(versions) > self.model.slots:
            raise ConfigError(
                f"A batch has {len(versions)} users with adapters, and {self.model.slots} fit in memory.",
                where="slots",
                fix="Send fewer users at once, or load more adapters.",
            )
        with self._changed:
            while not self._fits(versions):
                self._changed.wait()
            held, fresh = {}, []
            for user, version in versions.items():
                resident = self._residents.get(user)
                if resident is not None and resident.version == version:
                    resident.pins += 1  # before anything is evicted for the others
                    held[user] = resident
                    self._residents.move_to_end(user)
            for user, version in versions.items():
                if user not in held:
                    self._retire(user)
                    fresh.append(user)
                    held[user] = self._residents[user] = _Resident(self._take_slot(), version, pins=1)
        for user in fresh:
            self._loaders.submit(self._load, user, held[user], keys.get(user))
        return held

    def _fits(self, versions: dict[str, _Version]) -> bool:
        missing = sum(1 for user, version in versions.items() if not self._has(user, version))
        free = len(self._free) + sum(
            1 for user, resident in self._residents.items() if not resident.pins and not self._wanted(user, resident, versions)
        )
        return missing <= free

    def _has(self, user: str, version: _Version) -> bool:
        return user in self._residents and self._residents[user].version == version

    def _wanted(self, user: str, resident: _Resident, versions: dict[str, _Version]) -> bool:
        return versions.get(user) == resident.version

    def _take_slot(self) -> int:
        if not self._free:
            oldest = next(user for user, resident in self._residents.items() if not resident.pins)
            self._retire(oldest)
            self.evictions += 1
        return self._free.pop()

    def _retire(self, user: str) -> None:
        """Forgets a user's adapter, now or as soon as nobody uses it. Under the lock."""
        resident = self._residents.pop(user, None)
        if resident is None:
            return
        resident.stale = True
        if not resident.pins:
            self._empty(resident)

    def _empty(self, resident: _Resident) -> None:
        self.model.put(resident.slot, self.model.take(self.model.nobody))  # nothing of the user stays in memory
        self._free.append(resident.slot)

    def _load(self, user: str, resident: _Resident, key: bytes | None) -> None:
        try:
            self.model.put(resident.slot, self.store.get(user, key=key))
            self.loads += 1
            resident.loaded.set_result(None)
        except BaseException as error:
            resident.loaded.set_exception(error)

    def _await(self, held: dict[str, _Resident]) -> dict[str, PenchantError]:
        problems: dict[str, PenchantError] = {}
        for user, resident in held.items():
            try:
                resident.loaded.result()
            except Exception as error:
                problems[user] = error if isinstance(error, PenchantError) else _unreadable(user, error)
                with self._changed:
                    if self._residents.get(user) is resident:
                        self._retire(user)  # it is read again next time: it may have been mended
        return problems

    def _release(self, held: dict[str, _Resident]) -> None:
        with self._changed:
            for resident in held.values():
                resident.pins -= 1
                if resident.stale and not resident.pins:
                    self._empty(resident)
            self._changed.notify_all()


def _unreadable(user: str, error: Exception) -> ArtifactError:
    return ArtifactError(f"The adapter of user {user!r} cannot be read ({error}).", where="store", fix="Check the store's disk.")
