"""The store of personal adapters: one standard PEFT folder a user, which the user owns and stock PEFT loads::

    store.json                                what every adapter here is: base, PEFT config, shapes
    adapters/ab/abcd.../adapter_config.json   PEFT's; the folder's name is a digest of the user id
                        adapter_model.safetensors (or .aes, with a key of the user's)
                        card.json             whose it is, how it came to be, the sha256 of the tensors

A folder appears whole or not at all, so any number of workers may write. The cards are the index: a list of its own could say
something else than the folders, and would keep the id of somebody who was forgotten.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from penchant import __version__
from penchant.adapters.cards import CARD, Card, plain_config, read_card
from penchant.adapters.encryption import LockedError, decrypt, encrypt
from penchant.artifacts import read_json, replace_folder, write_json
from penchant.backbone.grouped.model import check_adapter
from penchant.errors import ArtifactError, DataError

STORE_FORMAT = 1
_STORE, _CONFIG = "store.json", "adapter_config.json"
_TENSORS, _ENCRYPTED = "adapter_model.safetensors", "adapter_model.aes"


class AdapterStore:
    """Adapters of one kind over one base, in a folder. `create` makes one, `open` finds it again.

    Safe for threads and for processes: what a call needs is read from disk.
    """

    def __init__(self, folder: Path, values: Mapping[str, Any]) -> None:
        self.folder, self._values = folder, values
        self.fingerprint: str = values["fingerprint"]
        self.shapes = {name: torch.Size(shape) for name, shape in values["shapes"].items()}
        self.config: Mapping[str, Any] = values["config"]

    @classmethod
    def create(
        cls, folder: str | Path, *, fingerprint: str, config: PeftConfig, shapes: Mapping[str, torch.Size]
    ) -> AdapterStore:
        """A new store, or the one that is there, if it is of the same base and the same PEFT config.

        Args:
            fingerprint: Of the base (`bases.base_fingerprint`).
            shapes: Of one adapter (`GroupedModel.shapes`).

        Raises:
            ArtifactError: There is a store of another base or kind of adapter.
            OutputError: It cannot be written here.
        """
        folder = Path(folder)
        values = {
            "format": STORE_FORMAT,
            "fingerprint": fingerprint,
            "config": plain_config(config),
            "shapes": {name: list(shape) for name, shape in shapes.items()},
        }
        if (folder / _STORE).exists():
            store = cls.open(folder)
            for name, what in (("fingerprint", "base"), ("config", "PEFT config"), ("shapes", "shape of adapters")):
                if store._values[name] != json.loads(json.dumps(values[name])):
                    raise ArtifactError(
                        f"The store was made for another {what}.", where=str(folder), fix="Choose another folder for this one."
                    )
            return store
        write_json(folder / _STORE, values)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> AdapterStore:
        """The store in a folder.

        Raises:
            ArtifactError: There is none, or it is damaged or of a newer format.
        """
        path = Path(folder) / _STORE
        if not path.is_file():
            raise ArtifactError(
                "There is no store of adapters here.", where=str(folder), fix="Give the folder that was fitted into."
            )
        values = read_json(path)
        if not isinstance(values, dict) or not {"fingerprint", "config", "shapes"} <= values.keys():
            raise ArtifactError("It is not a store's description.", where=str(path), fix="Restore it from a copy.")
        if values.get("format") != STORE_FORMAT:
            raise ArtifactError(
                f"The store has format {values.get('format')!r}; this penchant {__version__} reads {STORE_FORMAT}.",
                where=str(path),
                fix="Upgrade penchant.",
            )
        return cls(Path(folder), values)

    def check_base(self, fingerprint: str) -> None:
        """Whether the adapters are of this base.

        Raises:
            ArtifactError: They are not.
        """
        if fingerprint != self.fingerprint:
            raise ArtifactError(
                "The adapters here were fitted over another base.",
                where=str(self.folder),
                fix=f"Use {self._values['config']['base_model_name_or_path']}, as it was then.",
            )

    def check_shapes(self, shapes: Mapping[str, torch.Size]) -> None:
        """Whether the adapters fit a model's slots.

        Raises:
            ArtifactError: They do not.
        """
        if dict(shapes) != self.shapes:
            raise ArtifactError(
                "The adapters here are of another kind.",
                where=str(self.folder),
                fix="Use the settings of the store's PEFT config.",
            )

    def place(self, user: str) -> Path:
        """The folder of a user's adapter, whether it is there or not.

        Raises:
            DataError: The id is not text that can be written.
        """
        try:
            digest = hashlib.blake2b(user.encode(), digest_size=20).hexdigest()
        except UnicodeEncodeError:
            raise DataError(f"{user!r} is no user id.", where="user", fix="Give valid Unicode.") from None
        return self.folder / "adapters" / digest[:2] / digest

    def __contains__(self, user: str) -> bool:
        return self._existing(user) is not None

    def _existing(self, user: str) -> Path | None:
        """Where a user's adapter lies; while it is replaced, or if that was cut off, the old one has a hidden name."""
        place = self.place(user)
        if (place / CARD).is_file():
            return place
        return next((old.parent for old in place.parent.glob(f".{place.name}.*.old/{CARD}")), None)

    def version(self, user: str) -> int | None:
        """Changes whenever the user's adapter does; None where there is none. One look at the disk."""
        try:
            found = os.stat(self.place(user))
        except FileNotFoundError:
            place = self._existing(user)
            if place is None:
                return None
            found = os.stat(place)
        return hash((found.st_ino, found.st_mtime_ns))

    def users(self) -> Iterator[str]:
        """The ids of everybody who has an adapter, in no order; who is among the `damaged` ones cannot be told."""
        return (user for user, _ in self._found() if user is not None)

    def damaged(self) -> list[Path]:
        """Folders that do not say whose they are: the card cannot be read, or is of a user whose place is another."""
        return [folder for user, folder in self._found() if user is None]

    def _found(self) -> Iterator[tuple[str | None, Path]]:
        for path in sorted((self.folder / "adapters").glob(f"??/[!.]*/{CARD}")):
            try:
                user: str | None = read_card(path.parent).user
            except ArtifactError:
                user = None
            yield user if user is not None and self.place(user) == path.parent else None, path.parent

    def card(self, user: str) -> Card:
        """What is known of a user's adapter.

        Raises:
            ArtifactError: There is none, or its card is damaged or another user's.
        """
        return self._card(self._find(user), user)

    def _card(self, folder: Path, user: str) -> Card:
        card = read_card(folder)
        if card.user != user:  # a folder that was restored to the wrong place would answer in somebody else's name
            raise ArtifactError(
                f"What lies in the place of user {user!r} is another user's adapter.",
                where=str(folder),
                fix="Restore the right folder, or delete it and fit it again.",
            )
        return card

    def is_encrypted(self, user: str) -> bool:
        """Whether a user's adapter needs a key; asked of its files, since the card may be damaged."""
        folder = self._existing(user)
        return folder is not None and (folder / _ENCRYPTED).exists()

    def put(self, card: Card, tensors: Mapping[str, Tensor], *, key: bytes | None = None) -> None:
        """Keeps an adapter, in place of what the user had.

        Args:
            key: 32 bytes of the user's; the tensors are then encrypted.

        Raises:
            ArtifactError: It is not an adapter of this store.
            OutputError: The disk is full or the folder may not be written.
        """
        check_adapter(tensors, self.shapes, where=f"user {card.user!r}")
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        if key is not None:
            content = encrypt(content, key, self._sealed_for(card.user))
        with replace_folder(self.place(card.user)) as folder:
            write_json(folder / _CONFIG, self._values["config"])
            (folder / (_TENSORS if key is None else _ENCRYPTED)).write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            write_json(folder / CARD, asdict(card) | {"sha256": sha256, "encrypted": key is not None, "base": self.fingerprint})

    def get(self, user: str, *, key: bytes | None = None) -> dict[str, Tensor]:
        """A user's adapter.

        Raises:
            ArtifactError: There is none, or it is damaged or another user's.
        LockedError: It is encrypted, and this key does not open it.
        ConfigError: It is encrypted, and `cryptography` is not installed.
        """
        return self._decoded(user, self._content(user, key), str(self.place(user)))

    def _content(self, user: str, key: bytes | None) -> bytes:
        folder = self._find(user)
        card = self._card(folder, user)
        path = folder / (_ENCRYPTED if card.encrypted else _TENSORS)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise ArtifactError(
                f"It cannot be read ({error}).", where=str(path), fix="Check the disk and who may read it."
            ) from None
        if hashlib.sha256(content).hexdigest() != card.sha256:
            raise ArtifactError(
                f"The adapter of user {user!r} is damaged.", where=str(path), fix="Delete it and fit it again, or import a copy."
            )
        if not card.encrypted:
            return content
        if key is None:
            raise LockedError(f"The adapter of user {user!r} is encrypted.", where=str(path), fix="Give the user's key.")
        return decrypt(content, key, self._sealed_for(user), where=str(path))

    def _decoded(self, user: str, content: bytes, where: str) -> dict[str, Tensor]:
        try:
            tensors = load(content)
        except SafetensorError as error:
            raise ArtifactError(f"It is no safetensors file ({error}).", where=where, fix="Give an intact copy.") from None
        check_adapter(tensors, self.shapes, where=f"{where} (user {user!r})")
        return tensors

    def delete(self, user: str) -> bool:
        """Removes everything that is kept of a user; whether there was anything."""
        place, found = self.place(user), user in self
        if place.exists():
            gone = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
            os.replace(place, gone)  # a reader sees all of it or nothing
        for rest in place.parent.glob(f".{place.name}.*"):  # and of writers that were killed
            shutil.rmtree(rest, ignore_errors=True)
        return found

    def export(self, user: str, folder: str | Path, *, key: bytes | None = None) -> Path:
        """Writes a user's adapter as a standard PEFT folder, not encrypted.

        Raises:
            ArtifactError: As `get`.
            OutputError: It cannot be written there.
        """
        content, card = self._content(user, key), self.card(user)
        self._decoded(user, content, str(self.place(user)))
        with replace_folder(Path(folder)) as fresh:
            write_json(fresh / _CONFIG, self._values["config"])
            (fresh / _TENSORS).write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            write_json(fresh / CARD, asdict(card) | {"sha256": sha256, "encrypted": False})
        return Path(folder)

    def import_folder(self, user: str, folder: str | Path, *, key: bytes | None = None) -> None:
        """Takes a PEFT folder in as a user's adapter, whether it was exported here or fitted by stock PEFT.

        Raises:
            ArtifactError: It is not a PEFT folder with safetensors, is damaged, or is of another base or kind of adapter.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ArtifactError(
                "There is no such folder.", where=str(folder), fix=f"Give the folder that {_CONFIG} and {_TENSORS} are in."
            )
        config, own = read_json(folder / _CONFIG), self._values["config"]
        for name in ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora"):
            if isinstance(config, dict) and config.get(name) == own.get(name):
                continue
            found = config.get(name) if isinstance(config, dict) else config
            raise ArtifactError(
                f"{name} is {found!r}, and here it is {own.get(name)!r}.",
                where=str(folder / _CONFIG),
                fix="Give an adapter that was made with this store's settings.",
            )
        card = read_card(folder) if (folder / CARD).exists() else None
        same = card.base == self.fingerprint if card else config.get("base_model_name_or_path") == own["base_model_name_or_path"]
        if not same:
            raise ArtifactError(
                "It is an adapter of another base.",
                where=str(folder),
                fix=f"Adapters here are of {own['base_model_name_or_path']!r}, with its weights of then.",
            )
        path = folder / _TENSORS
        if not path.is_file():
            raise ArtifactError(f"There is no {_TENSORS}.", where=str(folder), fix="Save it with PEFT's save_pretrained.")
        content = path.read_bytes()
        if card and hashlib.sha256(content).hexdigest() != card.sha256:
            raise ArtifactError("It is not the file that was exported.", where=str(path), fix="Copy it again.")
        tensors = self._decoded(user, content, str(path))
        self.put(Card(user=user, base=self.fingerprint, examples=card.examples if card else 0), tensors, key=key)

    def _find(self, user: str) -> Path:
        place = self._existing(user)
        if place is None:
            raise ArtifactError(f"User {user!r} has no adapter.", where=str(self.folder), fix="Fit or import one.")
        return place

    def _sealed_for(self, user: str) -> bytes:
        """What a ciphertext is bound to: it opens as this user's, over this base, and as nobody else's."""
        return f"{self.fingerprint}\0{user}".encode()
