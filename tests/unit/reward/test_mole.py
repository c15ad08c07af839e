"""MoLE against a plain loop over experts, and what serving and training need of it."""

import threading

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from penchant.errors import BackboneError, ConfigError, TrainingError
from penchant.reward.mole import MoleConfig, MoleModel
from penchant.reward.mole.layer import MoleLayer
from penchant.reward.mole.registration import peft_type
from penchant.reward.mole.routing import Gate, current_routing

USERS, DIM = 5, 6


def bert():
    torch.manual_seed(0)
    return BertModel(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
                   hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )  # fmt: skip


def llama():
    torch.manual_seed(0)
    return LlamaModel(
        LlamaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
                    intermediate_size=32)
    )  # fmt: skip


BASES = {"encoder": (bert, ["query", "value"]), "decoder": (llama, ["q_proj", "v_proj", "up_proj"])}


def mole(base="encoder", **values):
    build, targets = BASES[base]
    settings = {"target_modules": targets, "r": 3, "num_experts": 4, "user_dim": DIM, "gate_hidden": 7} | values
    model = get_peft_model(build(), MoleConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():  # B starts at zero, which would hide everything
        if "mole_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def batch(sequences=6, tokens=5):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(50, (sequences, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def users():
    return torch.nn.functional.normalize(torch.randn(USERS, DIM, generator=torch.Generator().manual_seed(3)), dim=1)


INDEX = torch.tensor([4, 0, 2, 2, 1, 0])
VARIANTS = [
    {},
    {"top_k": 2},
    {"top_k": 3, "gate_weight": "softmax", "gate_scope": "layer", "shared_expert": False},
    {"gate_scope": "layer", "temperature": 0.5, "alpha": 5.0},
    {"num_experts": 1, "gate_weight": "softmax"},
]


def loop(layer, x, user, top_k):
    """A layer's output sequence by sequence and expert by expert, as the paper writes it."""
    config, rows = layer.mole_config["default"], []
    for tokens, embedding in zip(x, user, strict=True):
        gate = layer.mole_gate["default"] if config.gate_scope == "layer" else layer.model_gate
        probability = torch.softmax(gate.logits(torch.relu(gate.hidden(embedding))) / config.temperature, dim=0)
        weight, expert = probability.topk(top_k)
        if config.gate_weight == "straight_through":
            weight = weight / weight.sum().detach()
        total = layer.base_layer(tokens)
        scale = config.alpha / config.r
        for w, e in zip(weight, expert, strict=True):
            total = total + scale * w * (tokens @ layer.mole_A["default"][e].T @ layer.mole_B["default"][e].T)
        if config.shared_expert:
            total = total + scale * (tokens @ layer.mole_shared_A["default"].T @ layer.mole_shared_B["default"].T)
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_stacked_experts_are_the_plain_loop_forward_and_backward(variant, monkeypatch):
    embedding = users()
    model = mole(**variant)
    model(**batch(), user_embedding=embedding, user_index=INDEX).last_hidden_state.square().sum().backward()
    fast = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    out = model(**batch(), user_embedding=embedding, user_index=INDEX).last_hidden_state

    plain = mole(**variant)
    config = plain.peft_config["default"]
    for layer in plain.modules():
        if isinstance(layer, MoleLayer) and config.gate_scope == "model":
            object.__setattr__(layer, "model_gate", plain.base_model.mole_gate["default"])
    monkeypatch.setattr(MoleLayer, "forward", lambda self, x: loop(self, x, embedding[INDEX], config.top_k))
    expected = plain(**batch()).last_hidden_state
    assert torch.allclose(out, expected, atol=1e-5)
    expected.square().sum().backward()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(fast[name], grad, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("variant", VARIANTS[:3], ids=str)
def test_mixed_batch_is_one_user_at_a_time(base, variant):
    model, embedding, tokens = mole(base, **variant).eval(), users(), batch()
    with torch.no_grad():
        together = model(**tokens, user_embedding=embedding, user_index=INDEX).last_hidden_state
        for row, user in enumerate(INDEX):
            one = {name: value[row : row + 1] for name, value in tokens.items()}
            alone = model(**one, user_embedding=embedding[user : user + 1]).last_hidden_state[0]
            kept = tokens["attention_mask"][row].bool()
            assert torch.allclose(alone[kept], together[row][kept], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_fresh_adapter_changes_nothing_and_only_the_experts_learn():
    build, targets = BASES["encoder"]
    base, tokens = build().eval(), batch()
    expected = base(**tokens).last_hidden_state
    model = get_peft_model(base, MoleConfig(target_modules=targets, user_dim=DIM)).eval()
    assert torch.equal(model(**tokens, user_embedding=users(), user_index=INDEX).last_hidden_state, expected)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("mole_" in name for name in trained)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("scope", ["model", "layer"])
def test_recomputation_gives_the_same_gradients(base, reentrant, scope):
    """PEFT's Poly takes its hooks away before the backward pass recomputes."""
    gradients = []
    for recompute in (False, True):
        model = mole(base, gate_scope=scope).train()
        if recompute:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        out = model(**batch(), user_embedding=users(), user_index=INDEX).last_hidden_state
        assert current_routing() is None
        out.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if "mole_" in name})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6), name


def test_threads_do_not_see_each_others_users():
    model, embedding, tokens = mole().eval(), users(), batch()
    with torch.no_grad():
        expected = [
            model(**tokens, user_embedding=embedding[[u]], user_index=torch.zeros(6).long()).last_hidden_state
            for u in range(USERS)
        ]
    wrong = []

    def work(user):
        for _ in range(20):
            with torch.no_grad():
                index = torch.zeros(6, dtype=torch.long)
                out = model(**tokens, user_embedding=embedding[[user]], user_index=index).last_hidden_state
            if not torch.allclose(out, expected[user], atol=1e-6):
                wrong.append(user)

    threads = [threading.Thread(target=work, args=(number % USERS,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("scope", ["model", "layer"])
def test_saved_and_loaded_by_peft(tmp_path, scope):
    model, tokens = mole(gate_scope=scope, top_k=2).eval(), batch()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    loaded = PeftModel.from_pretrained(BASES["encoder"][0](), tmp_path).eval()
    assert isinstance(loaded.base_model, MoleModel)
    with torch.no_grad():
        out, again = (m(**tokens, user_embedding=users(), user_index=INDEX).last_hidden_state for m in (model, loaded))
    assert torch.equal(out, again)
    assert loaded.peft_config["default"].gate_scope == scope


def test_registration_is_one_member_however_often():
    assert peft_type() is peft_type()
    assert peft_type() == "MOLE"
    from peft.utils import PeftType

    assert [member.value for member in PeftType].count("MOLE") == 1
    assert PeftType("LORA") is PeftType.LORA


class Int8Linear(torch.nn.Module):
    """A linear layer with int8 weights and no float `weight`, as quantised bases have."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", (linear.weight / self.scale).round().to(torch.int8))

    def forward(self, x):
        return torch.nn.functional.linear(x, self.qweight * self.scale.detach(), self.bias)


def test_quantised_base_carries_experts():
    base = bert()
    for layer in base.encoder.layer:
        layer.attention.self.query = Int8Linear(layer.attention.self.query)
    model = get_peft_model(base, MoleConfig(target_modules=["query"], user_dim=DIM, r=3))
    out = model(**batch(), user_embedding=users(), user_index=INDEX).last_hidden_state
    out.square().sum().backward()
    assert model.base_model.model.encoder.layer[0].attention.self.query.mole_B["default"].grad.abs().sum() > 0


def test_disabled_adapter_is_the_base():
    model, tokens = mole().eval(), batch()
    with torch.no_grad(), model.disable_adapter():
        assert torch.allclose(model(**tokens).last_hidden_state, bert().eval()(**tokens).last_hidden_state, atol=1e-6)


def test_unused_expert_has_a_zero_gradient_not_none():
    model = mole()
    one = torch.zeros(6, dtype=torch.long)
    model(**batch(), user_embedding=users()[:1], user_index=one).last_hidden_state.square().sum().backward()
    layer = next(module for module in model.modules() if isinstance(module, MoleLayer))
    used = layer.mole_A["default"].grad.abs().sum((1, 2)) > 0
    assert used.sum() == 1


def test_layers_to_transform_adapts_those_alone():
    model = mole(layers_to_transform=[2])
    assert [name for name, module in model.named_modules() if isinstance(module, MoleLayer)] == [
        "base_model.model.encoder.layer.2.attention.self.query", "base_model.model.encoder.layer.2.attention.self.value",
    ]  # fmt: skip


def gate_route(top_k=1, straight_through=True, noise=0.0, training=True):
    torch.manual_seed(0)
    gate = Gate(DIM, 7, 4).train(training)
    return gate, lambda: gate(users(), noise=noise, temperature=1.0, top_k=top_k, straight_through=straight_through)


def test_straight_through_starts_at_full_strength_and_keeps_the_gradient():
    gate, route = gate_route()
    made = route()
    assert torch.allclose(made.weight, torch.ones(USERS, 1))
    made.weight.sum().backward()
    assert gate.hidden.weight.grad.abs().sum() > 0
    _, softmax = gate_route(straight_through=False)
    assert (softmax().weight < 0.6).all()


def test_noise_is_drawn_in_training_alone():
    _, train = gate_route(noise=2.0)
    _, still = gate_route(noise=2.0, training=False)
    assert not torch.equal(train().probability, train().probability)
    assert torch.equal(still().probability, still().probability)


def test_balance_loss_is_one_when_even_and_counts_users_once():
    from penchant.reward.mole.routing import Route

    even = Route(torch.arange(4)[:, None], torch.ones(4, 1), torch.full((4, 4), 0.25))
    assert even.balance_loss() == pytest.approx(1.0)
    assert even.load().tolist() == [0.25] * 4
    one = Route(torch.zeros(4, 1).long(), torch.ones(4, 1), torch.eye(4)[torch.zeros(4).long()])
    assert one.balance_loss() == pytest.approx(4.0)
    model, embedding = mole().train(), users()
    few, many = (model.base_model.route(embedding, torch.tensor(index)) for index in ([0, 1, 2, 3, 4], [0, 0, 0, 0, 1]))
    assert few.balance_loss() == many.balance_loss()


def test_routes_can_be_made_first_and_given():
    model, embedding = mole().eval(), users()
    routing = model.base_model.route(embedding, INDEX)
    given = model(**batch(), routing=routing).last_hidden_state
    assert torch.equal(given, model(**batch(), user_embedding=embedding, user_index=INDEX).last_hidden_state)
    assert len(routing.distinct()) == 1
    assert len(mole(gate_scope="layer").base_model.route(embedding).distinct()) == 6


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m: m(**batch()), TrainingError, "without a user"),
        (lambda m: m(**batch(), user_embedding=torch.randn(6, DIM + 1)), ConfigError, "user_dim is 6"),
        (lambda m: m(**batch(), user_embedding=torch.randn(2, DIM), user_index=INDEX), ConfigError, "There are 2"),
        (lambda m: m(**batch(), user_embedding=torch.randn(4, DIM)), TrainingError, "6 rows for 4 sequences"),
        (lambda m: m.merge_and_unload(), TrainingError, "cannot be merged"),
    ],
)
def test_mistakes_in_a_call(call, error, said):
    model = mole()
    with pytest.raises(error) as raised:
        call(model)
    assert said in str(raised.value)
    assert current_routing() is None, "a call that failed leaves nothing behind"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"r": 0}, "r is 0"), ({"top_k": 9}, "top_k is 9, of 8 experts"), ({"num_experts": 0}, "num_experts"),
        ({"gate_weight": "hard"}, "no gate_weight 'hard'"), ({"gate_scope": "token"}, "no gate_scope"),
        ({"temperature": 0.0}, "temperature"),
    ],
)  # fmt: skip
def test_config_that_cannot_be(values, said):
    with pytest.raises(ConfigError) as raised:
        MoleConfig(**values)
    assert said in str(raised.value)


def test_module_that_cannot_carry_experts():
    with pytest.raises(BackboneError, match="LayerNorm cannot be adapted"):
        get_peft_model(bert(), MoleConfig(target_modules=["LayerNorm"], user_dim=DIM))
