"""Fits whoever a store lacks: a run that was stopped goes on with the users who are not done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from penchant.adapters.cards import Card
from penchant.adapters.config import FittingSettings
from penchant.adapters.examples import Example
from penchant.adapters.fitting import AdapterFitter, FittedAdapter
from penchant.adapters.items import ItemReader
from penchant.adapters.store import AdapterStore
from penchant.artifacts import fingerprint
from penchant.errors import ArtifactError

_NO_MATTER = {"users_at_once", "rows_at_once", "recompute", "cache_gib"}
"""Settings that change the pace and not the adapters."""

KeyOf = Callable[[str], bytes | None]
"""From a user to the user's key."""


def no_key(_: str) -> bytes | None:
    """Nobody's adapter is encrypted."""
    return None


@dataclass
class Survey:
    """Where a store stands with users."""

    lacking: list[str] = field(default_factory=list)
    """Who has no adapter yet, one that was fitted on other examples or with other settings, or one whose card is damaged."""
    damaged: int = 0
    """Those of them with a damaged card."""
    imported: int = 0
    """Who brought an adapter, which is left as it is."""
    encrypted: int = 0
    """Whose adapter is another, but encrypted, and the key is not at hand: it is left as it is."""

    def warnings(self) -> list[str]:
        """What somebody who asked for fitting would not expect, in words."""
        told = {
            "{} imported are left as they are; replace_imported=true fits these users again.": self.imported,
            "{} encrypted are left as they are, though fitted otherwise: their keys are not at hand.": self.encrypted,
            "{} with damaged cards are fitted again.": self.damaged,
        }
        return ["Of the adapters that are there, " + words.format(f"{count:,}") for words, count in told.items() if count]


def recipe(settings: FittingSettings, reader: ItemReader, examples: Sequence[Example]) -> str:
    """What a user's adapter depends on, beside the base's weights and the store's PEFT config."""
    fitting = settings.model_dump(exclude=_NO_MATTER)
    return fingerprint([fitting, reader.max_tokens, reader.labels, [asdict(example) for example in examples]])


def survey(
    store: AdapterStore,
    settings: FittingSettings,
    reader: ItemReader,
    users: Mapping[str, Sequence[Example]],
    *,
    key_of: KeyOf = no_key,
    replace_imported: bool = False,
) -> Survey:
    """Looks up who is to be fitted, and whose adapter stays though it was not fitted so.

    Args:
        reader: Makes the examples ready; its window and labels are part of what an adapter depends on.
        key_of: A user's key; without it an encrypted adapter is not replaced.
        replace_imported: Whether users who brought an adapter are fitted, too.
    """
    found = Survey()
    for user, examples in users.items():
        if user not in store:
            found.lacking.append(user)
            continue
        try:
            card: Card | None = store.card(user)
        except ArtifactError:
            card = None
        if card is not None and card.recipe == recipe(settings, reader, examples):
            continue
        if card is not None and not card.recipe and not replace_imported:
            found.imported += 1
        elif store.is_encrypted(user) and key_of(user) is None:
            found.encrypted += 1
        else:
            found.lacking.append(user)
            found.damaged += card is None
    return found


def fill(
    store: AdapterStore,
    fitter: AdapterFitter,
    users: Mapping[str, Sequence[Example]],
    *,
    key_of: KeyOf = no_key,
    replace_imported: bool = False,
) -> Iterator[FittedAdapter]:
    """Fits the users whom the store lacks (see `survey`), and keeps each adapter before it is yielded.

    Args:
        key_of: A user's key, where adapters are to be encrypted at rest.
        replace_imported: Whether users who brought an adapter are fitted, too.

    Raises:
        DataError: Somebody's examples cannot be fitted on.
        BackboneError: What enters the lowest adapted layer is beyond float16.
        TrainingError: A loss is not finite.
        OutputError: The store cannot be written.
    """
    found = survey(store, fitter.settings, fitter.reader, users, key_of=key_of, replace_imported=replace_imported)
    for fitted in fitter.fit({user: users[user] for user in found.lacking}):
        card = Card(
            user=fitted.user,
            base=store.fingerprint,
            recipe=recipe(fitter.settings, fitter.reader, users[fitted.user]),
            examples=fitted.examples,
            steps=fitted.steps,
            loss=fitted.loss,
            held_out_loss=fitted.held_out_loss,
        )
        store.put(card, fitted.tensors, key=key_of(fitted.user))
        yield fitted
