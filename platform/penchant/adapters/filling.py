"""Fits whoever a store lacks: a run that was stopped goes on with the users who are not done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

from penchant.adapters.cards import Card
from penchant.adapters.config import FittingSettings
from penchant.adapters.examples import Example
from penchant.adapters.fitting import AdapterFitter, FittedAdapter
from penchant.adapters.store import AdapterStore
from penchant.artifacts import fingerprint

_NO_MATTER = {"users_at_once", "rows_at_once", "recompute", "cache_gib"}
"""Settings that change the pace and not the adapters."""


def recipe(settings: FittingSettings, examples: Sequence[Example]) -> str:
    """What a user's adapter depends on, beside the base and the store's PEFT config."""
    return fingerprint([settings.model_dump(exclude=_NO_MATTER), [asdict(example) for example in examples]])


def lacking(store: AdapterStore, settings: FittingSettings, users: Mapping[str, Sequence[Example]]) -> list[str]:
    """Who has no adapter yet, or one that was fitted on other examples or with other settings."""
    return [user for user in users if user not in store or store.card(user).recipe != recipe(settings, users[user])]


def fill(
    store: AdapterStore,
    fitter: AdapterFitter,
    users: Mapping[str, Sequence[Example]],
    *,
    key_of: Callable[[str], bytes | None] = lambda user: None,
) -> Iterator[FittedAdapter]:
    """Fits the users whom the store lacks, and keeps each adapter before it is yielded.

    Args:
        key_of: A user's key, where adapters are to be encrypted at rest.

    Raises:
        DataError: Somebody's examples cannot be fitted on.
        TrainingError: A loss is not finite.
        OutputError: The store cannot be written.
    """
    for fitted in fitter.fit({user: users[user] for user in lacking(store, fitter.settings, users)}):
        card = Card(
            user=fitted.user,
            base=store.fingerprint,
            recipe=recipe(fitter.settings, users[fitted.user]),
            examples=fitted.examples,
            steps=fitted.steps,
            loss=fitted.loss,
            held_out_loss=fitted.held_out_loss,
        )
        store.put(card, fitted.tensors, key=key_of(fitted.user))
        yield fitted
