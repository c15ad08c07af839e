"""Choosing how a bundle onboards users, by choices that the onboarding has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from penchant.scoring.config import OnboardingSettings
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.onboarding import Comparisons, rank_within

Round = tuple[Comparisons, Comparisons]
"""Comparisons that users are embedded from, and others of the same users to judge by."""


def cross_fitted(comparisons: Comparisons, *, folds: int) -> list[Round]:
    """Each user's comparisons dealt to folds; in each round one fold is held out and the users are embedded from the rest."""
    fold = rank_within(comparisons.user) % folds
    return [(comparisons.take(fold != held), comparisons.take(fold == held)) for held in range(folds)]


def choose_onboarding(
    model: PersonalisedRewardModel,
    settings: OnboardingSettings,
    feature_RF: Tensor,
    rounds: Sequence[Round],
    *,
    num_users: int,
) -> tuple[OnboardingSettings, dict[str, float]]:
    """The kind and temperature that rank most held-out choices right, and the accuracy of each that was tried.

    Where nothing is held out there is nothing to choose by, and none is tried: prototypes, unless the settings name a kind, at
    the middle one of the temperatures.

    Args:
        feature_RF: Features of the bundle's responses, in its order.
        rounds: What to embed from and what to judge by; users count from 0 to `num_users` - 1.
    """
    if not any(len(held_out) for _, held_out in rounds):
        middle = sorted(settings.temperatures)[len(settings.temperatures) // 2]
        named = "prototypes" if settings.kind == "auto" else settings.kind
        return settings.model_copy(update={"kind": named, "temperatures": (middle,)}), {}
    accuracy: dict[str, float] = {}
    options: dict[str, OnboardingSettings] = {}
    for kind, temperature in _options(model, settings):
        name = f"{kind} (temperature {temperature:g})" if kind == "prototypes" else kind
        right = [
            _right(model, feature_RF, embedded, held_out, num_users=num_users, kind=kind, temperature=temperature)
            for embedded, held_out in rounds
        ]
        accuracy[name] = float(torch.cat(right).mean())
        options[name] = settings.model_copy(update={"kind": kind, "temperatures": (temperature,)})
    # The temperature of prototypes matters to every kind: they stand in where the others have nothing to say.
    by_kind = {name: value for name, value in accuracy.items() if name.startswith("prototypes")}
    temperatures = options[max(by_kind, key=lambda name: by_kind[name])].temperatures
    wanted = {name: value for name, value in accuracy.items() if settings.kind in ("auto", options[name].kind)}
    best = options[max(wanted, key=lambda name: wanted[name])]
    return best.model_copy(update={"temperatures": temperatures}), accuracy


@torch.no_grad()
def _right(
    model: PersonalisedRewardModel,
    feature_RF: Tensor,
    embedded: Comparisons,
    held_out: Comparisons,
    *,
    num_users: int,
    kind: str,
    temperature: float,
) -> Tensor:
    """Which held-out choices are ranked right: 0 or 1, a half for a tie."""
    head, known = model.parts.personalised, np.arange(len(feature_RF))
    user_UD = model.embed(embedded, feature_RF, known, num_users=num_users, kind=kind, temperature=temperature)
    user_CD, hidden_RH = user_UD[torch.from_numpy(held_out.user)], head.hidden(feature_RF)
    chosen, rejected = (head.score(hidden_RH[rows], user_CD) for rows in (held_out.chosen, held_out.rejected))
    return ((chosen > rejected).double() + (chosen >= rejected).double()) / 2


def _options(model: PersonalisedRewardModel, settings: OnboardingSettings) -> list[tuple[str, float]]:
    options = [("prototypes", temperature) for temperature in settings.temperatures]
    options.append(("neighbours", settings.temperatures[0]))
    if model.parts.encoder.settings.inductive:
        options.append(("forward", settings.temperatures[0]))
    return options
