import dataclasses

import numpy as np
import pytest

from penchant.reward.config import HeadSettings
from penchant.reward.heads import make_head
from penchant.runtime.training.bundle_stage import _choose_onboarding
from penchant.scoring.config import OnboardingSettings
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.onboarding import Comparisons, rank_within
from penchant.scoring.selection import choose_onboarding, cross_fitted


def test_every_comparison_is_held_out_once_and_never_with_itself():
    user = np.random.default_rng(0).integers(0, 9, 100)
    rows = Comparisons(user, np.arange(100), np.arange(100) + 100)
    rounds = cross_fitted(rows, folds=4)
    held = np.concatenate([held_out.chosen for _, held_out in rounds])
    assert sorted(held) == list(range(100))
    for embedded, held_out in rounds:
        assert not set(embedded.chosen) & set(held_out.chosen)
        assert len(embedded) + len(held_out) == 100


def test_rank_within():
    assert rank_within(np.array([5, 3, 5, 5, 3])).tolist() == [0, 0, 1, 2, 1]
    assert rank_within(np.zeros(0, dtype=int)).tolist() == []


@pytest.mark.parametrize("kind", ["auto", "forward", "neighbours", "prototypes"])
def test_chosen_is_the_best_of_what_was_asked_for(bundle, planted, kind):
    folder, _, features = bundle
    unseen = planted[0].select(split=("train", "valid"), cohort="unseen")
    users, number = np.unique(unseen.user, return_inverse=True)
    settings = OnboardingSettings(kind=kind, temperatures=(0.05, 0.5))
    chosen, tried = choose_onboarding(
        PersonalisedRewardModel.load(folder),
        settings,
        features,
        cross_fitted(Comparisons(number, unseen.chosen, unseen.rejected), folds=3),
        num_users=len(users),
    )
    assert len(tried) == 4
    assert chosen.kind in ("forward", "neighbours", "prototypes")
    if kind == "auto":
        assert max(tried.values()) == max(value for name, value in tried.items() if name.startswith(chosen.kind))
    else:
        assert chosen.kind == kind
    assert len(chosen.temperatures) == 1


def test_under_a_linear_head_new_users_are_not_all_the_same(bundle, planted):
    _, parts, features = bundle
    settings = HeadSettings(kind="linear")
    head = make_head(settings, feature_dim=features.shape[1], user_dim=parts.user_UD.shape[1])
    linear = dataclasses.replace(parts, head_settings=settings, personalised=head.eval())
    chosen, _ = _choose_onboarding(planted[0], OnboardingSettings(), linear, features)
    assert chosen.kind == ("forward" if parts.encoder.settings.inductive else "neighbours")
    asked, _ = _choose_onboarding(planted[0], OnboardingSettings(kind="prototypes"), linear, features)
    assert asked.kind == "prototypes"


@pytest.mark.parametrize(("kind", "taken"), [("auto", "prototypes"), ("neighbours", "neighbours")])
def test_where_nothing_is_held_out_nothing_is_tried(bundle, planted, kind, taken):
    folder, _, features = bundle
    train = planted[0].select(split="train", cohort="seen")
    rows = Comparisons(train.user, train.chosen, train.rejected)
    nothing = rows.take(np.zeros(len(rows), dtype=bool))
    settings = OnboardingSettings(kind=kind, temperatures=(0.5, 0.05, 0.1))
    model = PersonalisedRewardModel.load(folder)
    chosen, tried = choose_onboarding(model, settings, features, [(rows, nothing)], num_users=60)
    assert (chosen.kind, chosen.temperatures, tried) == (taken, (0.1,), {})
