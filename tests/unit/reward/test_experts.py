"""The experts' model and its training, on a tiny base."""

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel

from penchant.backbone.activations import ActivationCache, ActivationReader
from penchant.backbone.config import BackboneSettings
from penchant.backbone.loading import load_backbone, outline
from penchant.backbone.reading import TextReader, lowest_layer, share_weights, trainable_part
from penchant.errors import BackboneError, ConfigError, TrainingError
from penchant.reward.config import ExpertSettings, HeadSettings
from penchant.reward.expert_training import ExpertData, ExpertTrainer, learning_rate_share
from penchant.reward.experts import ExpertModel, add_experts, add_lora, check_experts, start_gates_as_clusters
from penchant.reward.heads import make_head
from penchant.reward.training import UserTable

USERS, DIM = 12, 6


def settings(**values):
    small = {"num_experts": 3, "r": 2, "alpha": 4, "gate_hidden": 8, "layers": 1, "steps": 6, "evaluate_every": 3}
    return ExpertSettings(
        **(small | {"prompts_per_step": 2, "valid_prompts": 2, "learning_rate": 1e-2, "base_dropout": False} | values)
    )


@pytest.fixture
def backbone(tiny_backbone):
    return BackboneSettings(name=tiny_backbone, max_tokens=64)


@pytest.fixture
def data(planted):
    """Comparisons of a few users with made-up embeddings; of each prompt, some are for validation."""
    dataset, _ = planted
    rows = dataset.select(split="train", cohort="seen")
    rows = rows.take(rows.user < USERS)
    texts = [(dataset.prompts[at], text) for at, text in zip(dataset.prompt_of_response, dataset.responses, strict=True)]
    embedding = torch.nn.functional.normalize(torch.randn(USERS, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    return ExpertData(
        texts=texts,
        chosen=rows.chosen,
        rejected=rows.rejected,
        prompt=dataset.prompt_of_response[rows.chosen],
        valid=np.arange(len(rows)) % 5 == 0,
        users={"uniform": None, "personalised": UserTable(embedding, rows.user)},
    )


def make_models(backbone, chosen, *, device="cpu"):
    torch.manual_seed(0)
    base = trainable_part(load_backbone(backbone, device)[0], chosen.layers, dropout=chosen.base_dropout)
    width = 2 * 32 + 16
    heads = {dim: make_head(HeadSettings(hidden=8, dropout=0.0), feature_dim=width, user_dim=dim) for dim in (0, DIM)}
    models = {
        "uniform": ExpertModel(add_lora(base, chosen), heads[0], backbone),
        "personalised": ExpertModel(add_experts(base, chosen, user_dim=DIM), heads[DIM], backbone),
    }
    for model in models.values():  # as if trained: fresh adapters change nothing
        for name, parameter in model.trainable().items():
            if name.endswith(("lora_B.default.weight", "mole_B.default", "mole_shared_B.default")):
                torch.nn.init.normal_(parameter, std=0.3)
    return {name: model.to(device) for name, model in models.items()}


def make_reader(backbone, chosen, tmp_path):
    whole, tokenizer = load_backbone(backbone)
    cache = ActivationCache(tmp_path / "activations", budget_bytes=2**24)
    return TextReader(
        tokenizer, backbone, ActivationReader(whole, tokenizer, backbone, lowest_layer(whole, chosen.layers), cache)
    )


def make_trainer(backbone, data, tmp_path, chosen, **values):
    return ExpertTrainer(chosen, data, make_models(backbone, chosen), make_reader(backbone, chosen, tmp_path), **values)


def weights(trainer):
    models = trainer.models.items()
    return {f"{name}.{key}": value.detach().clone() for name, model in models for key, value in model.trainable().items()}


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value, other[name], **tolerance), name


@pytest.mark.parametrize("values", [{}, {"gate_weight": "softmax", "gate_scope": "layer"}, {"top_k": 2}, {"layers": None}])
def test_a_mixed_batch_scores_as_one_user_at_a_time(backbone, data, tmp_path, values):
    chosen = settings(**values)
    model = make_models(backbone, chosen)["personalised"].eval()
    _, tokenizer = load_backbone(backbone)
    reader = make_reader(backbone, chosen, tmp_path) if chosen.layers else TextReader(tokenizer, backbone)
    texts = reader.read(data.texts[:9])
    users = data.users["personalised"].embedding
    text, user = torch.arange(9).repeat(4), torch.randint(USERS, (36,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together = model(texts, text, users, user)
        alone = [
            model(reader.read([data.texts[t]]), torch.tensor([0]), users[u][None], torch.tensor([0])).score
            for t, u in zip(text, user, strict=True)
        ]
    assert torch.allclose(together.score, torch.cat(alone), atol=1e-5)
    routes = model.route(users).distinct()[0].expert[:, 0]
    owner = routes[user] if model.routes_are_few else user
    assert together.sequences == len(set(zip(text.tolist(), owner.tolist(), strict=True)))


def test_adapters_share_the_frozen_base(backbone):
    models = make_models(backbone, settings())
    frozen = [{p.data_ptr() for p in model.parameters() if not p.requires_grad} for model in models.values()]
    assert frozen[0] == frozen[1]
    assert not any("pooler" in name for name, _ in models["personalised"].named_parameters())


def test_every_trainable_parameter_gets_a_gradient(backbone, data, tmp_path):
    trainer = make_trainer(backbone, data, tmp_path, settings(gate_noise=0.0, load_balance_coef=0.1))
    trainer.step()
    for name, model in trainer.models.items():
        for key, parameter in model.trainable().items():
            assert parameter.grad is not None, (name, key)


def test_learns(backbone, data, tmp_path):
    trainer = make_trainer(backbone, data, tmp_path, settings(steps=40, prompts_per_step=6, evaluate_every=40))
    progress = list(trainer.run())
    first, last = (np.mean([p.loss["personalised"] for p in part]) for part in (progress[:5], progress[-5:]))
    assert last < first
    assert set(progress[-1].valid_accuracy) == {"uniform", "personalised"}
    assert progress[-1].sequences > 0


@pytest.mark.parametrize("values", [{"gradient_accumulation": 3}, {"gradient_checkpointing": True}])
def test_memory_savers_change_nothing(backbone, data, tmp_path, values):
    plain, saver = (
        make_trainer(backbone, data, tmp_path, settings(prompts_per_step=3, gate_noise=0.3, **extra)) for extra in ({}, values)
    )
    for trainer in (plain, saver):
        for model in trainer.models.values():
            if trainer.settings.gradient_checkpointing:
                model.checkpoint_gradients()
        trainer.step()
    gradients = [
        {key: p.grad for model in trainer.models.values() for key, p in model.trainable().items()} for trainer in (plain, saver)
    ]
    assert_same(*gradients, atol=1e-6)


def test_bfloat16_is_near_float32(backbone, data, tmp_path):
    full, mixed = (make_trainer(backbone, data, tmp_path, settings()) for _ in range(2))
    for model in mixed.models.values():
        model.precision = torch.bfloat16
    losses = [trainer.step() for trainer in (full, mixed)]
    assert losses[0] != losses[1]
    for name, loss in losses[0].items():
        assert loss == pytest.approx(losses[1][name], abs=0.05)
    assert all(value.dtype == torch.float32 for value in weights(mixed).values())


def test_workers_parts_add_up_to_the_whole(backbone, data, tmp_path):
    """Gradients of two workers, averaged, are those of one with the same prompts; routes and noise included."""
    chosen = settings(prompts_per_step=4, gate_noise=0.5, load_balance_coef=0.1)
    gradients = []

    def collect(values):
        gradients.append([value.clone() for value in values])

    for rank, world_size in ((0, 1), (0, 2), (1, 2)):
        make_trainer(backbone, data, tmp_path, chosen, rank=rank, world_size=world_size, average=collect).step()
    for model in range(2):
        whole, first, second = (gradients[model + 2 * number] for number in range(3))
        for one, half, other in zip(whole, first, second, strict=True):
            assert torch.allclose(one, (half + other) / 2, atol=1e-6)


def test_resuming_gives_the_uninterrupted_run(backbone, data, tmp_path):
    chosen = settings(gate_noise=0.5, dropout=0.2, base_dropout=True)
    whole, first, second = (make_trainer(backbone, data, tmp_path, chosen) for _ in range(3))
    list(whole.run())
    for _ in range(3):
        first.step()
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    list(second.run())
    assert_same(weights(whole), weights(second), rtol=0, atol=0)


def test_a_loss_that_is_not_finite_stops_the_run(backbone, data, tmp_path):
    trainer = make_trainer(backbone, data, tmp_path, settings())
    trainer.step()
    before = weights(trainer)
    with torch.no_grad():
        trainer.models["personalised"].head.shared.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="at step 1") as error:
        trainer.step()
    assert "prompts [" in str(error.value)
    assert "checkpoint" in str(error.value)
    name = "uniform.head.shared.weight"
    assert torch.equal(weights(trainer)[name], before[name])


def test_gates_that_start_as_clusters_leave_no_expert_idle(backbone, data):
    chosen = settings()
    model = make_models(backbone, chosen)["personalised"].eval()
    users = data.users["personalised"].embedding
    start_gates_as_clusters(model, users[:3])
    assert (model.route(users).distinct()[0].load() > 0).all()


def test_plain_lora_has_the_rank_that_one_user_gets(backbone):
    models = make_models(backbone, settings())
    count = {name: sum(p.numel() for key, p in m.trainable().items() if "_A" in key or "_B" in key) for name, m in models.items()}
    assert count["personalised"] == count["uniform"] // 2 * (3 + 1)


def test_a_base_that_cannot_be_adapted_is_refused(backbone, tmp_path):
    base = trainable_part(load_backbone(backbone)[0], 1, dropout=False)
    with pytest.raises(BackboneError, match="dense, key, query, value"):
        add_experts(base, settings(target_modules=("nothing",)), user_dim=DIM)
    with pytest.raises(BackboneError, match="layers 0 to 1"):
        trainable_part(load_backbone(backbone)[0], 5, dropout=False)
    uncut = DistilBertModel(DistilBertConfig(vocab_size=30, dim=16, n_layers=2, n_heads=2, hidden_dim=16))
    with pytest.raises(BackboneError, match=r"'distilbert'.*bert"):
        lowest_layer(uncut, 1)
    assert lowest_layer(uncut, None) == 0


def test_impossible_settings_are_refused_before_any_weight_is_read(backbone):
    base = outline(backbone)
    assert next(base.parameters()).device.type == "meta"
    check_experts(base, settings(), num_users=3)
    with pytest.raises(ConfigError, match="3 experts are more than the 2"):
        check_experts(base, settings(), num_users=2)
    with pytest.raises(ConfigError, match="hidden layer of 2"):
        check_experts(base, settings(gate_hidden=2), num_users=9)
    with pytest.raises(ConfigError, match="top_k is 4"):
        check_experts(base, settings(top_k=4), num_users=9)
    with pytest.raises(BackboneError, match="layers 0 to 1"):
        check_experts(base, settings(layers=3), num_users=9)
    with pytest.raises(BackboneError, match="key, query, value"):
        check_experts(base, settings(target_modules=("q_proj",)), num_users=9)


def test_more_workers_than_prompts_are_refused(backbone, data, tmp_path):
    with pytest.raises(ConfigError, match="3 workers"):
        make_trainer(backbone, data, tmp_path, settings(), world_size=3)


def test_shared_weights_are_the_same_tensors(backbone):
    base = trainable_part(load_backbone(backbone)[0], 1, dropout=False)
    other = share_weights(base)
    assert other is not base
    assert all(a is b for a, b in zip(base.parameters(), other.parameters(), strict=True))
    assert other.encoder.layer[0] is not base.encoder.layer[0]


def test_the_rate_rises_stays_and_falls():
    shares = [learning_rate_share(ExpertSettings(steps=100), step) for step in range(100)]
    assert shares[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert shares[10:70] == [1.0] * 60
    assert shares[85] == pytest.approx(0.5)
    cosine = ExpertSettings(steps=100, lr_scheduler_type="cosine", warmup_ratio=0.2)
    shares = [learning_rate_share(cosine, step) for step in range(100)]
    assert [shares[0], shares[9], shares[20], shares[60], shares[99]] == pytest.approx([0.05, 0.5, 1.0, 0.5, 0.0], abs=0.001)
