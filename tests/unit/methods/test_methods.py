"""Every method on a small world whose truth is known: two kinds of user, who like one feature or dislike it."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from penchant.errors import ConfigError
from penchant.methods.method import Choices, Shapes
from penchant.methods.registry import METHODS, MethodChoice, attribute_of, build_method
from penchant.methods.saved import load_method, save_method
from penchant.methods.training import MethodTrainer
from penchant.reward.config import HeadSettings, RewardSettings
from penchant.reward.training import RewardData, RewardTrainer

USERS, RESPONSES, FEATURES, PROMPTS = 40, 60, 12, 5
PERSONAL = sorted(set(METHODS) - {"uniform"})
SHAPES = Shapes(features=FEATURES, prompts=0, users=USERS, attributes=2)


def choices_of(users, random, *, per_user=40, feature=None):
    """Users of both kinds, in turn; everybody likes feature 1 a little."""
    feature = feature if feature is not None else random.normal(size=(RESPONSES, FEATURES)).astype(np.float32)
    user = np.repeat(np.arange(users), per_user)
    pair = np.stack([random.choice(RESPONSES, 2, replace=False) for _ in user])
    kind = np.where(user % 2, 1.0, -1.0)
    utility = feature[:, 0][pair] * kind[:, None] + 0.3 * feature[:, 1][pair]
    first = utility[:, 0] > utility[:, 1]
    chosen, rejected = np.where(first, *pair.T), np.where(first, *pair.T[::-1])
    prompt = random.normal(size=(RESPONSES, PROMPTS)).astype(np.float32)
    columns = (torch.from_numpy(column) for column in (user, chosen, rejected))
    return Choices(torch.from_numpy(np.hstack([feature, prompt])), *columns, users, torch.arange(users) % 2)


@pytest.fixture(scope="module")
def world():
    """Choices of the users of training, and of as many new ones over the same responses."""
    random = np.random.default_rng(0)
    seen = choices_of(USERS, random)
    return seen, choices_of(USERS, random, feature=seen.feature_RF[:, :FEATURES].numpy())


def made(name, **values):
    settings = MethodChoice.model_validate({"method": {"name": name, **values}}).method
    shapes = Shapes(FEATURES, PROMPTS if METHODS[name].reads_prompts else 0, USERS, 2)
    return settings, lambda: build_method(settings, shapes, HeadSettings())


def trainer_of(name, choices, *, steps=100, evaluate_every=50, beside=None, **values):
    _, build = made(name, **values)
    inputs = choices.feature_RF if METHODS[name].reads_prompts else choices.feature_RF[:, :FEATURES]
    user = choices.user.numpy()
    return MethodTrainer(
        RewardSettings(steps=steps, batch_size=64, learning_rate=1e-2, evaluate_every=evaluate_every),
        RewardData(
            feature_RF=choices.feature_RF[:, :FEATURES],
            chosen=choices.chosen.numpy(),
            rejected=choices.rejected.numpy(),
            valid=np.arange(len(user)) % 5 == 0,
            users={"personalised": None} | (beside or {}),
        ),
        user=choices.user,
        num_users=USERS,
        build=build,
        feature_RF=inputs,
        attribute_U=choices.attribute_U,
    )


def inputs_of(method, choices):
    return Choices(**(vars(choices) | {"feature_RF": choices.feature_RF[:, : len(method.standardise.mean)]}))


def accuracy(method, choices, vector_UD):
    choices = inputs_of(method, choices)
    with torch.no_grad():
        margin = method.eval().margin(choices, torch.arange(len(choices)), vector_UD[choices.user])
    return float((margin > 0).float().mean())


@pytest.fixture(scope="module")
def trained(world):
    """Every method, trained once."""
    trainers = {}
    for name in METHODS:
        quick = {"user_learning_rate": 0.05} if name in {"lore", "pal-a", "pal-b"} else {}  # few steps, and rows start at 0
        trainer = trainers[name] = trainer_of(name, world[0], beside={"uniform": None} if name == "uniform" else {}, **quick)
        list(trainer.run())
        trainer.method.load_state_dict(trainer.best_state["personalised"])
    return trainers


@pytest.mark.parametrize("name", PERSONAL)
def test_learns_what_divides_the_users(name, trained):
    assert trained["uniform"].best["uniform"] < 0.75
    assert trained[name].best["personalised"] > 0.85


@pytest.mark.parametrize("name", PERSONAL)
def test_the_wrong_user_is_no_better_than_uniform(name, trained, world):
    trainer = trained[name]
    vectors = trainer.seen_vectors()
    assert accuracy(trainer.method, world[0], vectors) > 0.9
    assert accuracy(trainer.method, world[0], vectors.roll(1, 0)) < 0.5, "the next user is of the other kind"


@pytest.mark.parametrize("name", PERSONAL)
def test_a_new_user_follows_from_comparisons_alone(name, trained, world):
    method, new = trained[name].method, inputs_of(trained[name].method, world[1])
    before = {key: value.clone() for key, value in method.state_dict().items()}
    known, asked = (Choices(**(vars(new) | part)) for part in halves(new))
    vectors = method.new_vectors(known)
    assert accuracy(method, asked, vectors) > 0.85
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items()), "what is shared stays as it was"
    only = known.user == 3
    alone = {key: getattr(known, key)[only] for key in ("user", "chosen", "rejected")}
    assert torch.allclose(method.new_vectors(Choices(**(vars(known) | alone)))[3], vectors[3], atol=1e-5)


def halves(choices):
    even = torch.arange(len(choices)) % 2 == 0
    return [{key: getattr(choices, key)[mask] for key in ("user", "chosen", "rejected")} for mask in (even, ~even)]


def test_uniform_as_a_method_is_uniform(trained):
    trainer = trained["uniform"]
    assert trainer.best["personalised"] == trainer.best["uniform"] < 0.75
    assert trainer.seen_vectors().shape == (USERS, 0)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_same_again_and_resumed_in_the_middle(name, world):
    whole, first, second = (trainer_of(name, world[0], steps=8, evaluate_every=4) for _ in range(3))
    list(whole.run())
    for _ in range(4):
        first.step()
    second.load_state(first.state())
    while second.step_number < 8:
        second.step()
    for key, value in whole.method.state_dict().items():
        assert torch.equal(value, second.method.state_dict()[key]), key
    assert torch.equal(whole.seen_vectors(), second.seen_vectors())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_saved_and_read_again(name, trained, world, tmp_path):
    trainer, (settings, _) = trained[name], made(name)
    save_method(tmp_path, trainer.method, trainer.seen_vectors(), settings, HeadSettings())
    method, vectors = load_method(tmp_path)
    assert torch.equal(vectors, trainer.seen_vectors())
    texts = inputs_of(method, world[0]).feature_RF[:5]
    with torch.no_grad():
        assert torch.equal(method(texts, vectors[:5]), trainer.method.eval()(texts, vectors[:5]))


def test_the_heads_beside_a_method_are_those_of_a_fit(trained, world):
    trainer = trained["uniform"]
    data = RewardData(
        feature_RF=trainer.feature_RF,
        chosen=world[0].chosen.numpy(),
        rejected=world[0].rejected.numpy(),
        valid=np.arange(len(world[0])) % 5 == 0,
        users={"uniform": None},
    )
    alone = RewardTrainer(trainer.settings, data)
    list(alone.run())
    for key, value in alone.best_state["uniform"].items():
        assert torch.equal(value, trainer.best_state["uniform"][key])


# The equations, row by row in plain numbers.


def rows_of(method, seed=0):
    torch.manual_seed(seed)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return method.eval(), torch.randn(4, len(method.standardise.mean))


def layers(network, x):
    return network[-1].weight @ (network[0].weight @ x + network[0].bias).relu() + network[-1].bias


def test_lore_is_a_weighted_sum_of_rewards():
    method, text_NF = rows_of(made("lore", basis=3)[1]())
    scores = method(text_NF, method.vectors(method.user_rows[:4]))
    for row in range(4):
        weight = [math.exp(value) for value in method.user_rows[row].tolist()]
        rewards = [(method.basis.weight[number] @ text_NF[row]).item() for number in range(3)]
        expected = sum(w * r for w, r in zip(weight, rewards, strict=True)) / sum(weight)
        assert scores[row].item() == pytest.approx(expected, rel=1e-4)


def test_pal_a_is_a_distance_from_the_ideal_point():
    method, text_NF = rows_of(made("pal-a", prototypes=3, dim=5)[1]())
    scores = method(text_NF, method.vectors(method.user_rows[:4]))
    for row in range(4):
        point = layers(method.project, functional.softmax(method.user_rows[row], 0) @ method.prototype_KF)
        assert float(scores[row].detach()) == pytest.approx(
            -float((layers(method.project, text_NF[row]) - point).norm() ** 2), rel=1e-4
        )


def test_pal_b_reads_the_prompt():
    method, text_NF = rows_of(made("pal-b", prototypes=3, dim=5)[1]())
    scores = method(text_NF, method.vectors(method.user_rows[:4]))
    for row in range(4):
        weight = functional.softmax(method.user_rows[row], 0)
        wish = sum(weight[k] * layers(method.wishes[k], text_NF[row, FEATURES:]) for k in range(3))
        assert float(scores[row]) == pytest.approx(float(layers(method.project, text_NF[row, :FEATURES]) @ wish), rel=1e-4)


def test_i2e_explains_a_choice_by_the_user_and_by_the_generic_user(world):
    choices = inputs_of(made("i2e")[1](), world[0])
    method = made("i2e", own_share=0.7)[1]()
    rows_of(method)
    rows = torch.tensor([3, 500, 77])
    expected = 0.0
    for row in rows:
        texts = choices.feature_RF[torch.stack([choices.chosen[row], choices.rejected[row]])]
        for share, user in ((0.7, method.generic + method.user_rows[choices.user[row]]), (0.3, method.generic)):
            chosen, rejected = method(texts, user.expand(2, -1))
            expected -= share * float(functional.logsigmoid(chosen - rejected))
    assert float(method.loss(choices, rows)) == pytest.approx(expected, rel=1e-4)


def test_vpl_encodes_a_line_of_comparisons_as_plain_attention_does(world):
    method = made("vpl", latent=6, hidden=7)[1]()
    choices = inputs_of(method, world[0])
    rows_of(method)
    row_NM = torch.tensor([[1, 2, 3], [4, 5, 0]])
    mean, log_variance = method.encode(choices, row_NM, torch.tensor([[True, True, True], [True, True, False]]))
    for line, picked in enumerate(([1, 2, 3], [4, 5])):
        pairs = torch.cat([choices.feature_RF[choices.chosen[picked]], choices.feature_RF[choices.rejected[picked]]], dim=1)
        pair = method.pair(method.read_pair(pairs))
        heard = functional.scaled_dot_product_attention(method.query(pair), method.key(pair), method.value(pair)).mean(0)
        assert torch.allclose(mean[line], method.mean(heard), atol=1e-5)
        assert torch.allclose(log_variance[line], method.log_variance(heard), atol=1e-5)


def test_vpl_explains_a_comparison_from_the_others_alone(world):
    method = made("vpl", context=64)[1]()
    choices = inputs_of(method, world[0])
    rows_of(method)
    turned = {"chosen": choices.chosen.clone(), "rejected": choices.rejected.clone()}
    turned["chosen"][7], turned["rejected"][7] = choices.rejected[7], choices.chosen[7]
    means = []
    for seen in (choices, Choices(**(vars(choices) | turned))):
        torch.manual_seed(1)
        means.append(method.posterior(seen, torch.tensor([7, 8]))[0])
    assert torch.equal(means[0][0], means[1][0])
    assert not torch.equal(means[0][1], means[1][1])


def test_vpl_loss_is_the_evidence_bound(world):
    method = made("vpl", kl_weight=0.5)[1]()
    choices = inputs_of(method, world[0])
    rows_of(method)
    rows = torch.tensor([3, 500])
    torch.manual_seed(2)
    loss = float(method.loss(choices, rows))
    torch.manual_seed(2)
    mean, log_variance = method.posterior(choices, rows)
    deviation = (log_variance / 2).exp()
    taste = mean + deviation * torch.randn_like(mean)
    normal = torch.distributions.Normal
    surprise = torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0)).sum()
    explained = functional.logsigmoid(method.margin(choices, rows, taste)).sum()
    assert loss == pytest.approx(float(0.5 * surprise - explained), rel=1e-4)


def test_vpl_of_nothing_is_the_prior(world):
    method = made("vpl")[1]()
    choices = inputs_of(method, world[0])
    nothing = {key: getattr(choices, key)[:0] for key in ("user", "chosen", "rejected")}
    vectors = method.new_vectors(Choices(**(vars(choices) | nothing)))
    assert vectors.shape == (USERS, 64)
    assert not vectors.any()


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def test_vpl_holds_few_weights_at_once_however_much_a_user_has_chosen(monkeypatch):
    random = np.random.default_rng(0)
    count = random.integers(0, 20, USERS)
    count[[3, 17]] = 500, 0
    user = np.repeat(np.arange(USERS), count)
    random.shuffle(user)
    pair = np.stack([random.choice(RESPONSES, 2, replace=False) for _ in user])
    columns = (torch.from_numpy(column) for column in (user, *pair.T))
    choices = Choices(torch.randn(RESPONSES, FEATURES), *columns, USERS)
    method = made("vpl", latent=6, hidden=7)[1]().eval()
    rows_of(method)
    order, start = choices.by_user()
    expected = [
        method.encode(choices, order[None, start[at] : start[at + 1]], torch.ones(1, int(count[at]), dtype=torch.bool))[0][0]
        for at in range(USERS)
    ]
    monkeypatch.setattr("penchant.methods.vpl._WEIGHTS_AT_ONCE", 2**12)
    with Largest() as largest:
        found = method.new_vectors(choices)
    assert largest.numbers <= 2**12
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)
    assert not found[17].any()


def test_a_mixture_weighs_its_kinds_by_bayes_rule(world):
    method = made("mixture", kinds=3)[1]()
    choices = inputs_of(method, world[0])
    rows_of(method)
    vectors = method.new_vectors(choices)
    rows = torch.tensor([3, 500, 77])
    left_out = method.training_vectors(choices, rows)
    prior = [math.exp(value) for value in method.frequency_K.tolist()]
    for place, row in enumerate(rows.tolist()):
        for skip, got in ((None, vectors[choices.user[row]]), (row, left_out[place])):
            weight = list(prior)
            for other in range(len(choices)):
                if choices.user[other] == choices.user[row] and other != skip:
                    chosen, rejected = (
                        method.hidden(choices.feature_RF[[int(side[other])]])[0] for side in (choices.chosen, choices.rejected)
                    )
                    weight = [w / (1 + math.exp(float(r - c))) for w, c, r in zip(weight, chosen, rejected, strict=True)]
            assert got.tolist() == pytest.approx([w / sum(weight) for w in weight], rel=1e-3, abs=1e-6)


def test_a_mixture_finds_kinds_where_users_have_few_choices():
    trainer = trainer_of("mixture", choices_of(USERS, np.random.default_rng(1), per_user=15), steps=150, kinds=2)
    list(trainer.run())
    trainer.method.load_state_dict(trainer.best_state["personalised"])
    kind = trainer.seen_vectors().argmax(1)
    true = torch.arange(USERS) % 2
    assert max((kind == true).float().mean(), (kind != true).float().mean()) > 0.9


def test_of_a_user_who_has_chosen_nothing_a_mixture_knows_how_frequent_kinds_are(world):
    method = made("mixture")[1]()
    choices = inputs_of(method, world[0])
    rows_of(method)
    nothing = {key: getattr(choices, key)[:0] for key in ("user", "chosen", "rejected")}
    vectors = method.new_vectors(Choices(**(vars(choices) | nothing)))
    texts = choices.feature_RF[:4]
    assert torch.allclose(vectors, method.frequency_K.softmax(-1).expand(USERS, -1))
    assert torch.allclose(method(texts), method(texts, vectors[:4]))


def test_settings_say_which_method():
    assert MethodChoice().method.name == "penchant"
    assert MethodChoice.model_validate({"method": "pal-a"}).method.prototypes == 8
    assert {attribute_of(made(name)[0]) for name in ("oracle", "proxy")} == {"group"}
    assert attribute_of(made("lore")[0]) is None


def test_every_method_has_settings_of_its_name():
    for name, kind in METHODS.items():
        settings, build = made(name)
        assert settings.name == name
        assert isinstance(build(), kind)
        assert type(settings).__doc__


def test_a_wrong_setting_is_named_with_those_that_there_are():
    from penchant.config import load_settings

    with pytest.raises(ConfigError, match="latent"):
        load_settings(MethodChoice, values={"method": {"name": "vpl", "latnet": 3}})
    with pytest.raises(ConfigError, match="'pal-b' or 'pal-a'"):
        load_settings(MethodChoice, overrides=["method=pal"])
