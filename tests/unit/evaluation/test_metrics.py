import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.evaluation.judgements import Judgements
from penchant.evaluation.metrics import (
    Bootstrap,
    accuracy_table,
    calibration_table,
    correctness,
    interval,
    onboarding_points,
    paired_differences,
    recovered_share,
)
from penchant.evaluation.users import group_purity, project_users


def judgements(margins, *, users=None, prompts=None, seen=None, controversial=None):
    count = len(next(iter(margins.values())))
    return Judgements(
        user=np.arange(count) if users is None else users,
        prompt=np.arange(count) if prompts is None else prompts,
        seen=np.ones(count, dtype=bool) if seen is None else seen,
        controversial=controversial,
        margins=margins,
    )


def random_judgements(random, *, users=30, prompts=20, count=400, user_spread=0.0, shift=0.3):
    user, prompt = random.integers(0, users, count), random.integers(0, prompts, count)
    taste = random.normal(0, user_spread, users)
    base = shift + taste[user] + random.normal(size=count)
    return judgements({"uniform": base, "personalised": base + 0.3}, users=user, prompts=prompt)


def test_a_tie_counts_one_half():
    assert correctness(np.array([2.0, -1.0, 0.0])).tolist() == [1, 0, 0.5]


def test_common_and_controversial_are_not_swapped():
    """The published code has them the wrong way round."""
    data = judgements({"uniform": np.array([1.0, 1.0, -1.0])}, controversial=np.array([False, False, True]))
    cells = accuracy_table(Bootstrap(data, resamples=20))["uniform"]["seen"]
    assert cells["common"]["value"] == 1
    assert cells["controversial"]["value"] == 0
    assert (cells["common"]["n"], cells["controversial"]["n"], cells["all"]["n"]) == (2, 1, 3)


def test_cohorts_are_apart():
    data = judgements({"uniform": np.array([1.0, -1.0])}, seen=np.array([True, False]))
    table = accuracy_table(Bootstrap(data, resamples=20))["uniform"]
    assert (table["seen"]["all"]["value"], table["unseen"]["all"]["value"]) == (1, 0)


def test_resamples_are_the_pigeonhole_bootstrap():
    """Against the plain loop: draw users, draw prompts, count each comparison as often as both were drawn."""
    data = random_judgements(np.random.default_rng(0))
    fast = Bootstrap(data, resamples=30, seed=7)
    random = np.random.default_rng(7)
    users, prompts = np.unique(data.user), np.unique(data.prompt)
    right = correctness(data.margins["uniform"])
    user_count = random.multinomial(len(users), np.full(len(users), 1 / len(users)), size=30)
    prompt_count = random.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=30)
    for number in range(30):
        weight = (
            user_count[number][np.searchsorted(users, data.user)] * prompt_count[number][np.searchsorted(prompts, data.prompt)]
        )
        assert fast.resampled["uniform", "seen", "all"][number] == pytest.approx((weight * right).sum() / weight.sum())


def test_intervals_cover_and_clusters_widen_them():
    """Where users differ, the truth is missed by intervals that take comparisons as independent, and held by these."""
    truth = float((np.random.default_rng(99).normal(0.3, np.hypot(1.0, 2.0), 1_000_000) > 0).mean())
    held, naive = 0, 0
    for seed in range(60):
        data = random_judgements(np.random.default_rng(seed), users=40, count=800, user_spread=2.0)
        low, high = interval(Bootstrap(data, resamples=200, seed=seed).resampled["uniform", "seen", "all"])
        held += low <= truth <= high
        rate = correctness(data.margins["uniform"]).mean()
        naive += abs(rate - truth) <= 1.96 * np.sqrt(rate * (1 - rate) / 800)
    assert held >= 52
    assert naive < held


def test_paired_difference_is_narrower_than_its_parts():
    data = random_judgements(np.random.default_rng(1), user_spread=1.0)
    bootstrap = Bootstrap(data, resamples=400)
    table, cell = accuracy_table(bootstrap), paired_differences(bootstrap)["personalised-uniform"]["seen"]["all"]
    parts = [table[name]["seen"]["all"] for name in ("uniform", "personalised")]
    assert cell["value"] == pytest.approx(parts[1]["value"] - parts[0]["value"])
    assert cell["high"] - cell["low"] < min(part["high"] - part["low"] for part in parts)


def test_recovered_share():
    margins = {
        "uniform": np.where(np.arange(100) < 50, 1.0, -1.0),
        "personalised": np.where(np.arange(100) < 70, 1.0, -1.0),
        "oracle": np.where(np.arange(100) < 90, 1.0, -1.0),
    }
    assert recovered_share(Bootstrap(judgements(margins), resamples=50))["seen"]["value"] == pytest.approx(0.5)
    del margins["oracle"]
    assert recovered_share(Bootstrap(judgements(margins), resamples=50)) == {}


def test_calibration_of_a_model_that_means_what_it_says():
    random = np.random.default_rng(0)
    margin = random.normal(0, 2, 200_000)
    chosen_first = random.random(len(margin)) < 1 / (1 + np.exp(-margin))
    honest = np.where(chosen_first, margin, -margin)
    table = calibration_table(judgements({"uniform": honest, "personalised": 3 * honest}))
    assert table["uniform"]["seen"]["expected_calibration_error"] < 0.01
    assert table["personalised"]["seen"]["expected_calibration_error"] > 0.05
    assert table["uniform"]["seen"]["log_loss"] < table["personalised"]["seen"]["log_loss"]
    assert sum(row["count"] for row in table["uniform"]["seen"]["bins"]) == len(margin)


def test_onboarding_points_leave_out_what_is_empty():
    data = judgements({"personalised": np.array([1.0, -1.0]), "uniform": np.ones(2)}, seen=np.zeros(2, dtype=bool))
    points = onboarding_points({0: data.take(np.zeros(2, dtype=bool)), 4: data}, resamples=20)
    assert [(point["comparisons"], point["value"]) for point in points] == [(4, 0.5)]


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=30), st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_every_interval_is_within_bounds(values, seed):
    random = np.random.default_rng(seed)
    data = judgements({"uniform": np.array(values)}, users=random.integers(0, 3, len(values)))
    cell = accuracy_table(Bootstrap(data, resamples=40, seed=seed))["uniform"]["seen"]["all"]
    assert 0 <= cell["low"] <= cell["high"] <= 1


def test_of_what_no_resample_has_drawn_nothing_is_known():
    # One comparison of 400 is of a new user: of ten resamples most have none of it, and some ten have none at all.
    seen = np.arange(400) > 0
    data = judgements({"uniform": np.ones(400), "personalised": np.ones(400)}, seen=seen, users=np.arange(400))
    made = [Bootstrap(data, resamples=10, seed=seed) for seed in range(400)]
    drawn = next(found for found in made if np.isnan(found.resampled["uniform", "unseen", "all"]).all())
    assert accuracy_table(drawn)["uniform"]["unseen"]["all"] == {"value": 1.0, "low": 0.0, "high": 1.0, "n": 1}
    difference = paired_differences(drawn)["personalised-uniform"]["unseen"]["all"]
    assert (difference["low"], difference["high"]) == (-1.0, 1.0)


def test_purity_and_map():
    random = np.random.default_rng(0)
    group = np.arange(60) % 3
    embedding = np.eye(3)[group] + random.normal(0, 0.05, (60, 3))
    half = np.arange(60) < 30
    assert group_purity(embedding, group, fit_U=half, of_U=~half) == 1
    assert group_purity(random.normal(size=(60, 3)), group, fit_U=half, of_U=~half) < 0.7
    shown = project_users(embedding, limit=20)
    assert shown.x.shape == shown.y.shape == shown.user.shape == (20,)
