"""What lies beside an adapter's tensors: whose it is and how it came to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peft import PeftConfig

from penchant import __version__
from penchant.artifacts import read_json
from penchant.errors import ArtifactError

CARD = "card.json"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a user's adapter."""

    user: str
    base: str
    """Fingerprint of the base that it was fitted over."""
    sha256: str = ""
    """Of the tensors' file as it lies there."""
    encrypted: bool = False
    recipe: str = ""
    """Fingerprint of the examples and settings; empty for an imported adapter."""
    examples: int = 0
    steps: int = 0
    loss: float | None = None
    held_out_loss: float | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    penchant: str = __version__


def read_card(folder: Path) -> Card:
    """The card in an adapter's folder.

    Raises:
        ArtifactError: It is not there, or is damaged.
    """
    try:
        card = Card(**read_json(folder / CARD))
        if not isinstance(card.user, str):
            raise TypeError(f"user is {card.user!r}")
        return card
    except TypeError as error:
        raise ArtifactError(
            f"The card is damaged ({error}).", where=str(folder / CARD), fix="Fit the adapter again, or delete it."
        ) from None


def plain_config(config: PeftConfig) -> dict[str, Any]:
    """A PEFT config as it stands in `adapter_config.json`, in the same order each time."""
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    return {name: values[name] for name in sorted(values)}
