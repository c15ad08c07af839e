import threading

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    Gemma2Config,
    Gemma2Model,
    Gemma3TextConfig,
    Gemma3TextModel,
    GemmaConfig,
    GemmaModel,
    LlamaConfig,
    LlamaModel,
)

from penchant.backbone.cut import check_cut, keep_upper, lower_activations
from penchant.errors import BackboneError

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
MODELS = {
    "bert": lambda: BertModel(BertConfig(**SMALL)),
    "llama": lambda: LlamaModel(LlamaConfig(**SMALL, num_key_value_heads=2)),
    "gemma": lambda: GemmaModel(GemmaConfig(**SMALL, num_key_value_heads=2, head_dim=8)),
}


# Every other layer sees a window of two tokens.
WINDOWED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 2}
TYPES = ["sliding_attention", "full_attention"] * 2
MODELS |= {
    "gemma2": lambda: Gemma2Model(Gemma2Config(**WINDOWED, layer_types=TYPES)),
    "gemma3_text": lambda: Gemma3TextModel(Gemma3TextConfig(**WINDOWED, layer_types=TYPES)),
}


def make(kind):
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def tokens(seed=0):
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(seed)), "attention_mask": mask}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("layer", [1, 3])
def test_lower_then_upper_is_the_whole(kind, layer):
    whole, upper, batch = make(kind), make(kind), tokens()
    lower = lower_activations(whole, layer, batch)
    assert lower.shape == (3, 7, 16)
    keep_upper(upper, layer)
    with torch.no_grad():
        expected = whole(**batch).last_hidden_state
        assert torch.allclose(upper(**batch, lower=lower).last_hidden_state, expected, atol=1e-6)


def test_gradients_of_the_upper_layers_are_those_of_the_whole():
    whole, upper, batch = make("bert"), make("bert"), tokens()
    lower = lower_activations(whole, 2, batch)
    keep_upper(upper, 2)
    whole(**batch).last_hidden_state.square().sum().backward()
    upper(**batch, lower=lower).last_hidden_state.square().sum().backward()
    for one, other in zip(whole.encoder.layer[2:].parameters(), upper.encoder.layer.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_recomputation_and_threads():
    upper, whole = make("llama").train(), make("llama")
    keep_upper(upper, 2)
    upper.activation_checkpointing_enable({"use_reentrant": False})
    batches = [tokens(seed) for seed in range(6)]
    wrong = []

    lowers = {id(batch): lower_activations(whole, 2, batch) for batch in batches}

    def work(batch):
        lower = lowers[id(batch)]
        for _ in range(5):
            out = upper(**batch, lower=lower).last_hidden_state
            if not torch.allclose(out, expected[id(batch)], atol=1e-5):
                wrong.append(batch)

    with torch.no_grad():
        expected = {id(batch): whole(**batch).last_hidden_state for batch in batches}
    threads = [threading.Thread(target=work, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    upper(**batches[0], lower=lowers[id(batches[0])]).last_hidden_state.square().sum().backward()
    assert all(parameter.grad is not None for parameter in upper.layers.parameters())


def test_experts_on_the_kept_layers_are_those_on_the_whole():
    from peft import get_peft_model

    from penchant.reward.mole import MoleConfig

    config = {"target_modules": ["query", "value"], "user_dim": 4, "r": 2}
    whole, cut, batch = make("bert"), make("bert"), tokens()
    lower = lower_activations(whole, 2, batch)
    keep_upper(cut, 2)
    on_whole = get_peft_model(whole, MoleConfig(**config, layers_to_transform=[2, 3])).eval()
    on_cut = get_peft_model(cut, MoleConfig(**config)).eval()
    weights = [[p for name, p in model.named_parameters() if "mole_" in name] for model in (on_whole, on_cut)]
    assert len(weights[0]) == len(weights[1]) > 0
    for one, other in zip(*weights, strict=True):
        other.data = one.data = torch.randn(one.shape) * 0.3
    users = torch.randn(3, 4)
    with torch.no_grad():
        expected = on_whole(**batch, user_embedding=users).last_hidden_state
        assert torch.allclose(on_cut(**batch, lower=lower, user_embedding=users).last_hidden_state, expected, atol=1e-5)


def test_mistakes():
    with pytest.raises(BackboneError, match="It has layers 0 to 3"):
        check_cut(make("bert"), 4)
    with pytest.raises(BackboneError, match="give 1 or more"):
        check_cut(make("bert"), 0)
    distil = DistilBertModel(DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32))
    with pytest.raises(BackboneError, match=r"'distilbert' model cannot be cut.*Known: bert"):
        lower_activations(distil, 1, tokens())
    upper = make("bert")
    keep_upper(upper, 2)
    with pytest.raises(BackboneError, match="without `lower=`"):
        upper(**tokens())
