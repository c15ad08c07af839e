"""Choosing how a bundle onboards users, by validation choices that the onboarding has not seen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from penchant.scoring.config import OnboardingSettings
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.onboarding import Comparisons


def choose_onboarding(
    model: PersonalisedRewardModel,
    settings: OnboardingSettings,
    feature_RF: Tensor,
    onboarding: Comparisons,
    held_out: Comparisons,
    *,
    num_users: int,
) -> tuple[OnboardingSettings, dict[str, float]]:
    """The kind and temperature that rank most held-out choices right, and the accuracy of each that was tried.

    Args:
        feature_RF: Features of the bundle's responses, in its order.
        onboarding: Comparisons that users are embedded from.
        held_out: Other comparisons of the same users.
    """
    known = np.arange(len(feature_RF))
    user = torch.from_numpy(held_out.user)
    hidden = model.parts.personalised.hidden(feature_RF)
    accuracy: dict[str, float] = {}
    options: dict[str, OnboardingSettings] = {}
    for kind, temperature in _options(model, settings):
        embedding = model.embed(onboarding, feature_RF, known, num_users=num_users, kind=kind, temperature=temperature)[user]
        chosen, rejected = (
            model.parts.personalised.score(hidden[rows], embedding) for rows in (held_out.chosen, held_out.rejected)
        )
        name = f"{kind} (temperature {temperature:g})" if kind == "prototypes" else kind
        accuracy[name] = float((chosen > rejected).double().mean()) if len(held_out) else 0.0
        options[name] = settings.model_copy(update={"kind": kind, "temperatures": (temperature,)})
    # The temperature of prototypes matters to every kind: they stand in where the others have nothing to say.
    by_kind = {name: value for name, value in accuracy.items() if name.startswith("prototypes")}
    temperatures = options[max(by_kind, key=lambda name: by_kind[name])].temperatures
    wanted = {name: value for name, value in accuracy.items() if settings.kind in ("auto", options[name].kind)}
    best = options[max(wanted, key=lambda name: wanted[name])]
    return best.model_copy(update={"temperatures": temperatures}), accuracy


def _options(model: PersonalisedRewardModel, settings: OnboardingSettings) -> list[tuple[str, float]]:
    options = [("prototypes", temperature) for temperature in settings.temperatures]
    options.append(("neighbours", settings.temperatures[0]))
    if model.parts.encoder.settings.inductive:
        options.append(("forward", settings.temperatures[0]))
    return options
