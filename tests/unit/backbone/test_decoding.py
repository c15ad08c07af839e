import copy
import random
from collections import Counter

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from penchant.backbone.grouped import Decoder, GroupedModel, Row
from penchant.backbone.grouped.decoding import sample

WORDS = 30
BASES = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=32, initializer_range=0.4,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=60, initializer_range=0.4)
    ),
}  # fmt: skip
KINDS = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6),
    "ia3": IA3Config(task_type="CAUSAL_LM"),
    "prompt_tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}
PROMPTS = [(5, 6, 7, 8, 9, 10, 11), (12,), (13, 14, 15), (5, 6), (20, 21, 22, 23), (12,)]


def make(base="llama", kind="lora", slots=3):
    torch.manual_seed(0)
    model = BASES[base]().double().eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    grouped = GroupedModel(model, copy.deepcopy(KINDS[kind]), slots=slots)
    for slot in range(slots):
        grouped.put(slot, {name: torch.randn(shape, dtype=torch.float64) for name, shape in grouped.shapes.items()})
    return grouped


def alone(model, slot, prompt, tokens):
    """What transformers' own `generate` writes for one row."""
    inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
    settings = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    if model.prompt_tokens and slot == model.nobody:
        return model.base.generate(**inputs, **settings)[0, len(prompt) :].tolist()
    written = model.generate(torch.tensor([slot]), **inputs, **settings)[0].tolist()
    return written if model.prompt_tokens else written[len(prompt) :]


@pytest.mark.parametrize(("base", "kind"), [("llama", "lora"), ("llama", "prompt_tuning"), ("llama", "ia3"), ("gpt2", "lora")])
def test_rows_that_come_and_go_are_written_as_each_alone(base, kind):
    model = make(base, kind)
    decoder, written, length = Decoder(model), {}, {}

    def add(*numbers):
        rows = [Row([0, 2, model.nobody, 1, 0, 1][number], PROMPTS[number], temperature=0) for number in numbers]
        for number, row, token in zip(numbers, rows, decoder.add(rows), strict=True):
            written[row], length[row] = [token], 3 + 2 * number

    def step():
        for row, token in zip(list(decoder.rows), decoder.step(), strict=True):
            written[row].append(token)
        decoder.drop({row for row in decoder.rows if len(written[row]) >= length[row]})

    add(0, 1, 2)
    step()
    step()
    add(3)
    step()
    add(4, 5)
    while decoder.rows:
        step()
    assert len(written) == 6
    for row, tokens in written.items():
        assert tokens == alone(model, row.slot, row.prompt, length[row])
    assert len({tuple(tokens[:3]) for tokens in written.values()}) > 3, "the adapters make a difference"


def test_a_prompt_of_one_user_is_read_once_for_all_its_candidates():
    model = make()
    decoder, read, forward = Decoder(model), [], model.base.forward

    def counted(*args, **inputs):
        read.append(len(inputs["input_ids"]))
        return forward(*args, **inputs)

    model.base.forward = counted
    decoder.add([Row(0, PROMPTS[0]), Row(0, PROMPTS[0]), Row(1, PROMPTS[0])])
    assert read == [2]
    decoder.step()
    assert read == [2, 3]


def test_what_a_long_row_took_is_given_back():
    decoder = Decoder(make())
    long, short = Row(0, tuple([5] * 40)), Row(1, (5, 6))
    decoder.add([long, short])
    decoder.step()
    assert decoder._cache.get_seq_length() == 41
    decoder.drop({long})
    assert decoder._cache.get_seq_length() == 3
    assert decoder._mask_BT.tolist() == [[1, 1, 1]]
    decoder.drop({short})
    assert decoder._cache.get_seq_length() == 0
    assert decoder.rows == []


def draws(logits, count=4000, **settings):
    row = Row(0, (1,), random=random.Random(0), **settings)
    return Counter(sample(logits.expand(count, -1), [row] * count).tolist())


def test_words_are_drawn_by_their_probability():
    probability = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    counts = draws(probability.log())
    for word, share in enumerate(probability[0].tolist()):
        assert counts[word] / 4000 == pytest.approx(share, abs=0.03)
    warm = draws(probability.log(), temperature=2.0)
    expected = probability.sqrt() / probability.sqrt().sum()
    assert warm[3] / 4000 == pytest.approx(float(expected[0, 3]), abs=0.03)
    assert draws(probability.log(), temperature=0.0) == {0: 4000}


@pytest.mark.parametrize(
    ("top_p", "words"), [(0.49, {2}), (0.51, {2, 0}), (0.79, {2, 0}), (0.95, {2, 0, 3}), (0.001, {2}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_likeliest_words_that_reach_it(top_p, words):
    assert set(draws(torch.tensor([[0.3, 0.05, 0.5, 0.15]]).double().log(), top_p=top_p)) == words


def test_what_a_row_draws_depends_on_no_other_row():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))

    def rows():
        return [Row(0, (1,), random=random.Random(seed), top_p=top_p) for seed, top_p in ((1, 1.0), (2, 0.5), (3, 0.9))]

    at_once = rows()
    together = [sample(logits, at_once).tolist() for _ in range(5)]
    for number in range(3):
        row = rows()[number]
        assert [sample(logits[number : number + 1], [row]).tolist()[0] for _ in range(5)] == [drawn[number] for drawn in together]
    greedy = Row(0, (1,), temperature=0)
    assert sample(logits, [greedy, *rows()[1:]]).tolist()[0] == int(logits[0].argmax())
