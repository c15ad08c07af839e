"""Texts and instants that a database can hold, and the digests that stand for them in its indices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime

from penchant.data.choices import TextComparison, latest_comparisons
from penchant.errors import DataError


def check_text(text: object, field: str) -> None:
    """Refuses what PostgreSQL or UTF-8 cannot hold, before the database is asked.

    Raises:
        DataError: Not a text, or one with a NUL or half of a surrogate pair. The text itself is not told.
    """
    if not isinstance(text, str):
        raise DataError(f"It is a {type(text).__name__}, not a text.", where=field, fix="Give a text.")
    if "\0" in text:
        raise DataError(f"There is a NUL at position {text.index(chr(0))}.", where=field, fix="Leave it out.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"There is half of a surrogate pair at position {error.start}.", where=field, fix="Give whole characters."
        ) from None


def check_user(tenant: str, user: str) -> None:
    """Refuses ids that the database cannot hold."""
    check_text(tenant, "tenant")
    check_text(user, "user")


def check_choices(choices: Sequence[TextComparison]) -> None:
    """Refuses an empty list, and texts that the database cannot hold."""
    if not choices:
        raise DataError("There is no comparison.", where="comparisons", fix="Give at least one.")
    for number, choice in enumerate(choices):
        for field in ("prompt", "chosen", "rejected"):
            check_text(getattr(choice, field), f"comparisons[{number}].{field}")


def digest(*parts: str) -> bytes:
    """sha256 of texts that hold no NUL, joined by NULs: other parts, another digest. An index takes it, however long they are."""
    return hashlib.sha256("\0".join(parts).encode()).digest()


def pair_digest(choice: TextComparison) -> bytes:
    """The same for a choice and for its reverse."""
    return digest(choice.prompt, *sorted((choice.chosen, choice.rejected)))


def kept_comparisons(choices: Sequence[TextComparison], *, limit: int) -> list[TextComparison]:
    """What `UserStore.comparisons` gives once these are stored in this order: of the latest on each pair the newest `limit`.

    Raises:
        DataError: A text that cannot be held.
    """
    check_choices(choices)
    latest = latest_comparisons(choices)
    return latest[max(0, len(latest) - limit) :]


def body_digest(user: str, choices: Sequence[TextComparison]) -> bytes:
    """Of a whole request, as canonical JSON: tells a repeated request from another with the same idempotency key."""
    body = [user, [[choice.prompt, choice.chosen, choice.rejected] for choice in choices]]
    return hashlib.sha256(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()).digest()


def check_instant(instant: datetime, field: str) -> None:
    """Refuses an instant that does not say which it is.

    Raises:
        DataError: It has no time zone.
    """
    if instant.utcoffset() is None:
        raise DataError("The instant has no time zone.", where=field, fix="Give one, as in datetime.now(UTC).")
