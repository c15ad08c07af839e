import copy
import threading

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model, set_peft_model_state_dict
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from penchant.backbone.grouped import GroupedModel, Rows
from penchant.errors import ArtifactError, BackboneError, TrainingError

SIZE = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
BASES = {
    "encoder": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZE, max_position_embeddings=40, num_labels=3)),
    "decoder": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=2)),
    "conv1d": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=40)),
}
CONFIGS = {
    "lora": lambda task: LoraConfig(task_type=task, r=2, lora_alpha=6),
    "ia3": lambda task: IA3Config(task_type=task),
    "prompt": lambda task: PromptTuningConfig(task_type=task, num_virtual_tokens=3),
}


def make(base="decoder", kind="lora", slots=3, lowest=0):
    torch.manual_seed(0)
    model = BASES[base]().double().eval().requires_grad_(False)
    grouped = GroupedModel(model, CONFIGS[kind]("SEQ_CLS" if base == "encoder" else "CAUSAL_LM"), slots=slots, lowest=lowest)
    for slot in range(slots):
        grouped.put(slot, {name: torch.randn(shape, dtype=torch.float64) * 0.3 for name, shape in grouped.shapes.items()})
    return model, grouped


def make_tokens(rows=5):
    mask = torch.ones(rows, 7, dtype=torch.long)
    mask[1, 5:] = mask[3, 4:] = 0
    return {"input_ids": torch.randint(3, 30, (rows, 7), generator=torch.Generator().manual_seed(1)), "attention_mask": mask}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_each_row_is_as_peft_has_it_for_the_slots_adapter(base, kind):
    whole, grouped = make(base, kind)
    slot_B, tokens = torch.tensor([2, 0, 1, 0, 2]), make_tokens()
    together = grouped(slot_B, **tokens).logits
    for row, slot in enumerate(slot_B.tolist()):
        stock = get_peft_model(copy.deepcopy(whole), copy.deepcopy(grouped.config)).double().eval()
        set_peft_model_state_dict(stock, grouped.take(slot))
        kept = tokens["attention_mask"][row].bool()
        alone = stock(**{name: value[row : row + 1, kept] for name, value in tokens.items()}).logits[0]
        torch.testing.assert_close(together[row][: len(alone)] if base != "encoder" else together[row], alone, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_rows_of_nobody_are_the_bases(kind):
    whole, grouped = make("encoder", kind)
    tokens = make_tokens()
    slot_B = torch.tensor([0, grouped.nobody, 1, grouped.nobody, 2])
    changed = (grouped(slot_B, **tokens).logits - whole(**tokens).logits).abs().amax(1)
    assert changed[[1, 3]].max() < 1e-12
    assert changed[[0, 2, 4]].min() > 1e-3


def test_prompt_tuning_has_no_prompt_that_changes_nothing():
    _, grouped = make(kind="prompt")
    with pytest.raises(BackboneError, match="no prompt that changes nothing"):
        grouped(torch.full((5,), grouped.nobody), **make_tokens())
    with pytest.raises(BackboneError, match="lowest layer"):
        make(kind="prompt", lowest=1)


def gradients(grouped, slot_B, tokens, **dropout):
    for parameter in grouped.stacked.values():
        parameter.grad = None
    grouped(Rows(slot_B, **dropout), **tokens).logits.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in grouped.stacked.items()}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("base", ["encoder", "decoder"])
def test_recomputation_in_another_thread_changes_nothing(base, dropout):
    """The backward pass runs in a thread of its own, where no call is open; another call is made in between."""
    _, grouped = make(base)
    slot_B, tokens = torch.tensor([2, 0, 1, 0, 2]), make_tokens()
    values = {"dropout": dropout, "key": torch.arange(5) * 7} if dropout else {}
    plain = gradients(grouped, slot_B, tokens, **values)
    grouped.checkpoint_gradients()
    for parameter in grouped.stacked.values():
        parameter.grad = None
    loss = grouped(Rows(slot_B, **values), **tokens).logits.square().sum()
    with torch.no_grad():
        grouped(torch.tensor([1]), **{name: value[:1] for name, value in tokens.items()})
    backward = threading.Thread(target=loss.backward)
    backward.start()
    backward.join()
    recomputed = {name: parameter.grad for name, parameter in grouped.stacked.items()}
    torch.testing.assert_close(recomputed, plain, rtol=1e-12, atol=1e-12)


def test_recomputation_runs_layers_again_and_leaves_the_base_in_eval_mode():
    _, grouped = make("encoder")
    runs = []
    layer = grouped.base.roberta.encoder.layer[0].attention.self.query
    layer.register_forward_hook(lambda *_: runs.append(1))
    grouped.checkpoint_gradients()
    gradients(grouped, torch.zeros(5, dtype=torch.long), make_tokens())
    assert len(runs) == 2
    assert not any(module.training for module in grouped.base.modules() if isinstance(module, torch.nn.Dropout))


def test_threads_do_not_see_each_others_rows():
    _, grouped = make()
    tokens = make_tokens()
    slots = [torch.full((5,), slot) for slot in range(3)]
    with torch.no_grad():
        expected = [grouped(slot_B, **tokens).logits for slot_B in slots]
    found = {}

    def ask(number):
        with torch.no_grad():
            for _ in range(10):
                found[number] = grouped(slots[number], **tokens).logits

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        torch.testing.assert_close(found[number], expected[number], rtol=0, atol=0)


def test_gradients_stay_in_the_rows_own_slots():
    _, grouped = make("encoder")
    found = gradients(grouped, torch.tensor([2, 0, 2, 0, 2]), make_tokens())
    for name, gradient in found.items():
        assert gradient[[0, 2]].flatten(1).any(1).all(), name
        assert not gradient[[1, 3]].any(), name


def test_the_base_is_neither_changed_nor_wrapped_again():
    """The published code wraps the base once more for every user, so that the n-th user's model is n adapters deep."""
    torch.manual_seed(0)
    whole = BASES["encoder"]().double().eval().requires_grad_(False)
    names, before = [name for name, _ in whole.named_modules()], copy.deepcopy(whole.state_dict())
    for _ in range(3):
        grouped = GroupedModel(whole, CONFIGS["lora"]("SEQ_CLS"), slots=2)
        wrapped = [module for module in grouped.modules() if hasattr(module, "base_layer")]
        assert wrapped
        assert not any(hasattr(module.base_layer, "base_layer") for module in wrapped)
        gradients(grouped, torch.zeros(5, dtype=torch.long), make_tokens())
    assert [name for name, _ in whole.named_modules()] == names
    torch.testing.assert_close(dict(whole.state_dict()), dict(before), rtol=0, atol=0)
    shared = {parameter.data_ptr() for parameter in whole.parameters()}
    frozen = [parameter for parameter in grouped.parameters() if not parameter.requires_grad]
    assert {parameter.data_ptr() for parameter in frozen} <= shared
    assert all(parameter.grad is None for parameter in frozen)


def test_dropout_is_a_hash_of_row_layer_and_position():
    like = torch.zeros(2, 50, 40)
    rows = Rows(torch.tensor([0, 1]), 0.3, torch.tensor([5, 6]))
    kept = rows.kept(0, like)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (kept == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(rows.kept(0, like[:, :9, :]), kept[:, :9], rtol=0, atol=0)
    again = Rows(torch.tensor([3]), 0.3, torch.tensor([6])).kept(0, like[:1])
    torch.testing.assert_close(again[0], kept[1], rtol=0, atol=0)
    for other in (kept[1], rows.kept(1, like)[0], kept[0].roll(1, 0), kept[0].roll(1, 1)):
        assert (other == kept[0]).float().mean().item() == pytest.approx(0.7**2 + 0.3**2, abs=0.04)


def test_what_does_not_fit_is_refused():
    whole, grouped = make("encoder")
    adapter = grouped.take(0)
    some = next(iter(adapter))
    with pytest.raises(ArtifactError, match=f"{some} is missing"):
        grouped.put(0, {name: value for name, value in adapter.items() if name != some})
    with pytest.raises(ArtifactError, match=r"is \(1, 1\), not"):
        grouped.put(0, adapter | {some: torch.zeros(1, 1)})
    with pytest.raises(ArtifactError, match="not of this kind"):
        grouped.put(0, adapter | {"other": torch.zeros(1)})
    with pytest.raises(BackboneError, match="key, out_proj, query, value"):
        GroupedModel(whole, LoraConfig(task_type="SEQ_CLS", target_modules=["nothing"]), slots=1)
    with pytest.raises(TrainingError, match="without rows"):
        grouped.base(**make_tokens())
    with pytest.raises(BackboneError, match="5 rows for 2 slots"):
        grouped(torch.tensor([0, 1]), **make_tokens())
