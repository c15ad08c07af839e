import numpy as np
import pytest

from penchant.data.answers import read_answers
from penchant.data.planted import PlantedWorld, generate, load_truth, save_planted
from penchant.errors import OutputError

SMALL = {"users": 60, "unseen_users": 12, "prompts": 40, "comparisons_per_user": 12}


def test_same_world_same_data():
    first, second, other = (generate(PlantedWorld(**SMALL, seed=seed))[0].fingerprint for seed in (1, 1, 2))
    assert first == second != other


def test_noise_is_the_share_that_errs():
    """Without noise a group always chooses the same of a pair; with it, about `noise` of the choices go the other way."""
    for noise in (0.0, 0.2):
        dataset, truth = generate(PlantedWorld(users=400, unseen_users=0, prompts=40, comparisons_per_user=30, noise=noise))
        rows = dataset.comparisons
        low, high = np.minimum(rows.chosen, rows.rejected), np.maximum(rows.chosen, rows.rejected)
        _, cell = np.unique(np.stack([dataset.group[rows.user], low, high]), axis=1, return_inverse=True)
        count = np.bincount(cell)
        share = np.bincount(cell, rows.chosen == low) / count
        minority = np.minimum(share, 1 - share)[count >= 15].mean()
        assert minority == pytest.approx(noise, abs=0.03)
        assert truth.bayes_accuracy == 1 - noise


def test_groups_agree_as_often_as_asked():
    for agreement in (0.5, 0.7):
        assert generate(PlantedWorld(agreement=agreement))[1].agreement == pytest.approx(agreement, abs=0.06)


def test_controversial_pairs_are_those_that_groups_disagree_on():
    dataset, _ = generate(PlantedWorld(users=300, unseen_users=0, prompts=40, comparisons_per_user=30, noise=0.0))
    rows = dataset.comparisons
    first = {}
    for chosen, rejected, controversial in zip(rows.chosen, rows.rejected, rows.controversial, strict=True):
        first.setdefault((min(chosen, rejected), max(chosen, rejected)), []).append((chosen < rejected, controversial))
    for answers in first.values():
        said = {controversial for _, controversial in answers}
        assert len(said) == 1
        if not said.pop():
            assert len({answer for answer, _ in answers}) == 1


def test_individuality_makes_users_of_a_group_differ():
    def disagreement(individuality):
        world = PlantedWorld(
            users=200, unseen_users=0, prompts=20, comparisons_per_user=30, noise=0.0, individuality=individuality
        )
        dataset, truth = generate(world)
        rows = dataset.comparisons
        low, high = np.minimum(rows.chosen, rows.rejected), np.maximum(rows.chosen, rows.rejected)
        _, cell = np.unique(np.stack([dataset.group[rows.user], low, high]), axis=1, return_inverse=True)
        count = np.bincount(cell)
        share = np.bincount(cell, rows.chosen == low) / count
        return np.average(np.minimum(share, 1 - share), weights=count), truth.uniform_bayes_accuracy

    (none, groups), (some, _), (all_own, nobody) = (disagreement(share) for share in (0.0, 0.4, 1.0))
    assert none == 0
    assert 0.05 < some < all_own
    assert all_own > 0.25, "as of strangers"
    assert 0.5 < nobody < groups


def test_nobody_answers_for_users_with_a_taste_of_their_own(tmp_path):
    dataset, _ = save_planted(PlantedWorld(**SMALL, individuality=0.5), tmp_path / "world")
    assert read_answers(tmp_path / "world", dataset) is None
    dataset, _ = save_planted(PlantedWorld(**SMALL), tmp_path / "groups")
    assert read_answers(tmp_path / "groups", dataset) is not None


def test_protocols_give_as_many_comparisons_as_they_say():
    for protocol, low, high in (("all", 12, 12), ("avg", 1, 23)):
        dataset, _ = generate(PlantedWorld(**SMALL, protocol=protocol))
        counts = np.bincount(dataset.select(split="train").user)
        assert (counts.min() >= low) & (counts.max() <= high)
        assert counts.mean() == pytest.approx(12, abs=2)


def test_truth_is_beside_the_data_and_a_full_folder_is_refused(tmp_path):
    world = PlantedWorld(**SMALL)
    save_planted(world, tmp_path / "world")
    assert load_truth(tmp_path / "world")["world"]["users"] == 60
    with pytest.raises(OutputError, match="not empty"):
        save_planted(world, tmp_path / "world")


def test_world_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="too many comparisons"):
        PlantedWorld(users=10, prompts=10, comparisons_per_user=100)


def test_no_pair_of_the_same_text_is_asked():
    dataset, _ = generate(PlantedWorld())
    rows = dataset.comparisons
    assert all(dataset.responses[c] != dataset.responses[r] for c, r in zip(rows.chosen, rows.rejected, strict=True))
