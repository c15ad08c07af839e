"""Encryption of an adapter at rest, with a key of the user's: AES-256 in Galois/Counter mode, by `cryptography`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from penchant.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE, _TAG = 12, 16


class LockedError(ArtifactError):
    """An adapter is encrypted, and there is no key, or it does not open with this one."""


def encrypt(content: bytes, key: bytes, bound_to: bytes) -> bytes:
    """A random nonce and the ciphertext.

    Args:
        key: 32 bytes.
        bound_to: What must be the same when it is decrypted.

    Raises:
        ConfigError: The key has another length, or `cryptography` is not installed.
    """
    nonce = os.urandom(_NONCE)
    return nonce + _cipher(key).encrypt(nonce, content, bound_to)


def decrypt(content: bytes, key: bytes, bound_to: bytes, *, where: str) -> bytes:
    """What was encrypted.

    Raises:
        LockedError: It was encrypted with another key or for something else, or was altered since.
        ArtifactError: It is too short to be anything that was encrypted.
        ConfigError: The key has another length, or `cryptography` is not installed.
    """
    cipher = _cipher(key)
    if len(content) < _NONCE + _TAG:
        raise ArtifactError("It is cut short.", where=where, fix="Fit it again, or import a copy.")
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(content[:_NONCE], content[_NONCE:], bound_to)
    except InvalidTag:
        raise LockedError("This key does not open it.", where=where, fix="Give the key that it was encrypted with.") from None


def _cipher(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigError(
            "Encryption needs the package cryptography.", where="key", fix="pip install 'penchant[encryption]'"
        ) from None
    if len(key) != 32:
        raise ConfigError(f"The key has {len(key)} bytes.", where="key", fix="Give 32 random bytes, as from os.urandom(32).")
    return AESGCM(key)
