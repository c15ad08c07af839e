import numpy as np
import pytest
import torch

from penchant.errors import TrainingError
from penchant.reward.config import HeadSettings, RewardSettings
from penchant.reward.training import RewardData, RewardTrainer, UserTable

USERS, RESPONSES, FEATURES = 40, 60, 12


def planted_data(*, valid_share=0.2, noise=0.0):
    """Two kinds of user, who like one feature or dislike it; everybody likes another."""
    random = np.random.default_rng(0)
    feature = torch.from_numpy(random.normal(size=(RESPONSES, FEATURES)).astype(np.float32))
    user = random.integers(0, USERS, 3000)
    pair = np.stack([random.choice(RESPONSES, 2, replace=False) for _ in range(3000)])
    kind = np.where(np.arange(USERS) % 2, 1.0, -1.0)
    utility = feature.numpy()[:, 0][pair] * kind[user][:, None] + 0.5 * feature.numpy()[:, 1][pair]
    first = (utility[:, 0] > utility[:, 1]) ^ (random.random(3000) < noise)
    group = torch.nn.functional.one_hot(torch.arange(USERS) % 2, 2).float()
    return RewardData(
        feature_RF=feature,
        chosen=np.where(first, pair[:, 0], pair[:, 1]),
        rejected=np.where(first, pair[:, 1], pair[:, 0]),
        valid=random.random(3000) < valid_share,
        users={"uniform": None, "personalised": UserTable(group, user)},
    )


def settings(**values):
    return RewardSettings(**({"steps": 300, "batch_size": 64, "learning_rate": 1e-2, "evaluate_every": 50} | values))


def test_finds_the_planted_tastes():
    trainer = RewardTrainer(settings(), planted_data())
    list(trainer.run())
    assert trainer.best["personalised"] > 0.95
    assert trainer.best["uniform"] < 0.75


def test_linear_head_is_uniform_on_a_frozen_base():
    trainer = RewardTrainer(settings(head=HeadSettings(kind="linear")), planted_data())
    list(trainer.run())
    assert trainer.best["personalised"] == trainer.best["uniform"]


def test_resuming_gives_the_uninterrupted_run():
    whole, first, second = (RewardTrainer(settings(steps=20, evaluate_every=5), planted_data()) for _ in range(3))
    list(whole.run())
    looks = first.run()
    for _ in range(2):
        next(looks)
    assert first.step_number == 10
    second.load_state(first.state())
    list(second.run())
    state = second.state()
    assert state.keys() == whole.state().keys()
    for name, value in whole.state().items():
        assert torch.equal(value, state[name]), name


def test_without_validation_comparisons_the_last_step_is_kept():
    trainer = RewardTrainer(settings(steps=60), planted_data(valid_share=0.0))
    list(trainer.run())
    for name, head in trainer.heads.items():
        for key, value in head.state_dict().items():
            assert torch.equal(value, trainer.best_state[name][key])


def test_workers_share_one_batch_that_does_not_depend_on_their_number():
    data = planted_data()
    alone = RewardTrainer(settings(), data)._batch().sort().values
    for world_size in (2, 3):
        parts = [RewardTrainer(settings(), data, rank=rank, world_size=world_size)._batch() for rank in range(world_size)]
        assert torch.equal(torch.cat(parts).sort().values, alone)


def test_loss_that_is_not_finite_names_the_step():
    data = planted_data()
    data.feature_RF[:, 3] = torch.nan
    with pytest.raises(TrainingError, match="nan at step 0"):
        RewardTrainer(settings(), data).step()


def test_no_training_comparison():
    with pytest.raises(TrainingError, match="no training comparison"):
        RewardTrainer(settings(), planted_data(valid_share=1.1))
