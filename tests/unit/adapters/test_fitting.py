import copy
import math

import numpy as np
import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from penchant.adapters.config import AdapterSettings
from penchant.adapters.courses import user_seed
from penchant.adapters.examples import Example
from penchant.adapters.items import Item, ItemReader
from penchant.errors import BackboneError, DataError, TrainingError

KINDS = {
    "lora": AdapterSettings(r=2, alpha=6),
    "ia3": AdapterSettings(kind="ia3"),
    "prompt_tuning": AdapterSettings(kind="prompt_tuning", virtual_tokens=2),
}
EXACT = {"rtol": 0, "atol": 1e-9}


def make_users(tiny, answers, counts=(3, 7, 1)):
    return {f"user {number}": tiny.make_examples(answers, count, seed=number) for number, count in enumerate(counts)}


def fit_alone_with_peft(base, fitter, user, examples):
    """One user by the libraries alone: PEFT's model, torch's AdamW, schedule and clipping, one example at a time."""
    settings, reader = fitter.settings, fitter.reader
    config = copy.deepcopy(fitter.model.config)
    config.inference_mode = False
    model = get_peft_model(copy.deepcopy(base), config).double().eval()
    seed = user_seed(settings.seed, user)
    set_peft_model_state_dict(model, fitter.model.fresh(torch.Generator().manual_seed(seed)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    items = reader.items(examples)
    an_epoch = math.ceil(len(items) / settings.batch_size)
    steps = settings.epochs * an_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for epoch in range(settings.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(items))
        for start in range(0, len(items), settings.batch_size):
            batch = [items[at] for at in order[start : start + settings.batch_size]]
            optimizer.zero_grad()
            loss, weight = 0.0, 0
            for item in batch:
                tokens = torch.tensor([item.tokens])
                logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
                if reader.labels is not None:
                    loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor([item.answer]))
                    weight += 1
                else:
                    word = logits[0, -item.answer - 1 : -1]
                    loss = loss + torch.nn.functional.cross_entropy(word, tokens[0, -item.answer :], reduction="sum")
                    weight += item.answer
            (loss / weight).backward()
            torch.nn.utils.clip_grad_norm_(trained, settings.clip)
            optimizer.step()
            schedule.step()
    return get_peft_model_state_dict(model, save_embedding_layers=False)


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once_is_what_the_libraries_give_one_by_one(tiny, any_base, kind):
    answers, base, tokenizer = any_base
    users = make_users(tiny, answers)
    fitter = tiny.make_fitter(base, tokenizer, KINDS[kind], slots=2, epochs=2, weight_decay=0.1, clip=0.5, rows_at_once=5)
    fitted = tiny.fit(fitter, users)
    assert fitted.keys() == users.keys()
    for user, examples in users.items():
        tiny.assert_same(fitted[user].tensors, fit_alone_with_peft(base, fitter, user, examples), **EXACT)
        assert fitted[user].steps == 2 * math.ceil(len(examples) / 3)


@pytest.mark.parametrize(
    "fitting",
    [{"patience": 1, "held_out": 0.3, "epochs": 4}, {"recompute": True, "dropout": 0.3, "epochs": 2, "clip": None}],
    ids=str,
)
def test_others_change_nothing(tiny, any_base, fitting):
    """Other users in the batch, their number, the order and the size of the passes."""
    answers, base, tokenizer = any_base
    users = make_users(tiny, answers)
    adapter = AdapterSettings(r=2, alpha=6, layers=2)
    together = tiny.fit(tiny.make_fitter(base, tokenizer, adapter, slots=3, **fitting), users)
    alone = tiny.make_fitter(base, tokenizer, adapter, slots=1, rows_at_once=2, **(fitting | {"recompute": False}))
    for user in reversed(users):
        (one,) = alone.fit({user: users[user]})
        tiny.assert_same(one.tensors, together[user].tensors, **EXACT)
        assert one.steps == together[user].steps


def test_dropout_and_seed_do_something(tiny, label_base):
    users = make_users(tiny, "label", (9,))
    found = [
        tiny.fit(tiny.make_fitter(*label_base, slots=1, **values), users)["user 0"].tensors
        for values in ({}, {"dropout": 0.3}, {"dropout": 0.3, "seed": 1})
    ]
    name = next(name for name in found[0] if name.endswith("lora_B.weight"))
    assert len({tuple(tensors[name].flatten().tolist()) for tensors in found}) == 3


def test_three_examples_and_three_hundred_in_the_same_run(tiny, label_base):
    """Nobody waits for the longest: slots are filled again as users get done, and the longest user is never touched by that."""
    users = make_users(tiny, "label", (45, 3, 3, 3, 3))
    fitter = tiny.make_fitter(*label_base, slots=2, epochs=1)
    order = [fitted.user for fitted in fitter.fit(users)]
    assert order[-1] == "user 0"
    assert set(order) == set(users)


def test_a_finished_users_slot_is_left_alone(tiny, label_base):
    fitter = tiny.make_fitter(*label_base, slots=3, weight_decay=0.5, epochs=2)
    steps = fitter.fit(make_users(tiny, "label", (9, 3)))
    first = next(steps)
    left = fitter.model.take(1)
    list(steps)
    assert first.user == "user 1"
    tiny.assert_same(left, fitter.model.take(1), rtol=0, atol=0)
    tiny.assert_same(first.tensors, left, rtol=0, atol=0)
    nobody = fitter.model.take(fitter.model.nobody)
    assert all(not value.any() for name, value in nobody.items() if "lora_B" in name)


def test_early_stop_keeps_the_best_adapter(tiny, label_base):
    users = {"user": tiny.make_examples("label", 20)}
    stopped = tiny.fit(tiny.make_fitter(*label_base, patience=1, held_out=0.4, epochs=12, learning_rate=0.05), users)["user"]
    whole = tiny.fit(tiny.make_fitter(*label_base, epochs=12, learning_rate=0.05), users)["user"]
    assert stopped.steps < 12 * 4
    assert stopped.examples == whole.examples == 20
    assert whole.held_out_loss is None
    check = tiny.make_fitter(*label_base)
    check.model.put(0, stopped.tensors)
    items = check.reader.items(users["user"][12:])
    logits = check.model(torch.zeros(8, dtype=torch.long), **check.reader.inputs(items)).logits
    assert check.reader.losses(items, logits).mean().item() == pytest.approx(stopped.held_out_loss)


def test_learns_each_users_own_rule(tiny, label_base):
    """Two users who answer the same prompts in opposite ways."""
    prompts = ["red round", "blue flat", "red small", "blue large", "red old", "blue new"]
    rules = {"a": {"red": "low", "blue": "high"}, "b": {"red": "high", "blue": "low"}}
    users = {user: [Example(prompt, rule[prompt.split()[0]]) for prompt in prompts] for user, rule in rules.items()}
    fitter = tiny.make_fitter(*label_base, epochs=20)
    fitted = tiny.fit(fitter, users)
    items = fitter.reader.items([Example("red dry", "low"), Example("blue dry", "low")])
    for user, expected in (("a", [0, 2]), ("b", [2, 0])):
        fitter.model.put(0, fitted[user].tensors)
        logits = fitter.model(torch.zeros(2, dtype=torch.long), **fitter.reader.inputs(items)).logits
        assert logits.argmax(1).tolist() == expected


def test_lower_activations_are_computed_once_and_change_next_to_nothing(tiny, any_base, tmp_path):
    answers, base, tokenizer = any_base
    users, adapter = make_users(tiny, answers, (4, 4)), AdapterSettings(r=2, layers=1)
    whole = tiny.fit(tiny.make_fitter(base, tokenizer, adapter, cut=False), users)
    fitter = tiny.make_fitter(base, tokenizer, adapter, cache=tmp_path)
    calls = []
    compute = fitter.reader._compute
    fitter.reader._compute = lambda items: calls.append(len(items)) or compute(items)
    cached = tiny.fit(fitter, users)
    assert sum(calls) == len({item.key for examples in users.values() for item in fitter.reader.items(examples)})
    for user in users:
        assert cached[user].loss == pytest.approx(whole[user].loss, rel=1e-2), "float16 in between"


def test_an_adapter_is_the_same_whether_activations_are_kept_or_not(tiny, any_base, tmp_path):
    answers, base, tokenizer = any_base
    users, adapter = make_users(tiny, answers, (4, 4)), AdapterSettings(r=2, layers=1)
    computed = tiny.fit(tiny.make_fitter(base, tokenizer, adapter), users)
    cached = tiny.fit(tiny.make_fitter(base, tokenizer, adapter, cache=tmp_path), users)
    for user in users:
        tiny.assert_same(cached[user].tensors, computed[user].tensors, **EXACT)


@pytest.mark.parametrize("cached", [True, False])
def test_activations_beyond_float16_are_refused(tiny, text_base, tmp_path, cached):
    base, tokenizer = copy.deepcopy(text_base[0]), text_base[1]
    base.model.embed_tokens.weight *= 1e6
    fitter = tiny.make_fitter(base, tokenizer, AdapterSettings(r=2, layers=1), cache=tmp_path if cached else None)
    with pytest.raises(BackboneError, match="layer 2 of this base is beyond float16") as refused:
        tiny.fit(fitter, make_users(tiny, "text"))
    assert refused.value.where == "adapter.layers"


def test_activations_are_kept_block_by_block_as_far_as_the_budget_goes(label_base, tmp_path):
    random = np.random.default_rng(0)
    items = [Item(tuple(random.integers(4, 16, 6 + number // 100).tolist()), 0) for number in range(900)]

    def reader(cache_bytes):
        return ItemReader(*label_base, max_tokens=32, lowest=1, cache_bytes=cache_bytes, cache_folder=tmp_path / str(cache_bytes))

    need = sum(len(item.tokens) for item in items) * 16 * 2
    plenty, tight = reader(2 * need), reader(int(0.6 * need))
    at_once = []
    compute = tight._compute
    tight._compute = lambda part: at_once.append(len(part)) or compute(part)
    plenty.fill(items)
    tight.fill(items)
    assert len(plenty.cache) == 900
    assert len(tight.cache) == 512
    assert at_once == [256, 256, 256], "no more in memory than a block, and no more after the first that is too much"
    assert torch.equal(tight.inputs(items)["lower"], plenty.inputs(items)["lower"])


def test_only_the_targets_tokens_are_learnt(tiny, text_base):
    fitter = tiny.make_fitter(*text_base)
    (item,) = fitter.reader.items([Example("red green blue", "wet dry")])
    ids = fitter.reader.tokenizer.convert_tokens_to_ids
    assert item.tokens[-3:] == (ids("wet"), ids("dry"), fitter.reader.tokenizer.eos_token_id)
    assert item.answer == 3
    logits = torch.zeros(1, len(item.tokens), 16, dtype=torch.float64, requires_grad=True)
    fitter.reader.losses([item], logits).sum().backward()
    assert logits.grad.abs().sum(2)[0].nonzero().flatten().tolist() == [3, 4, 5]


def test_long_examples_keep_their_target(tiny, text_base):
    fitter = tiny.make_fitter(*text_base)
    (item,) = fitter.reader.items([Example("red " * 100 + "blue", "wet dry")])
    ids = fitter.reader.tokenizer.convert_tokens_to_ids
    assert len(item.tokens) == 32
    assert item.tokens[0] == fitter.reader.tokenizer.bos_token_id
    assert item.tokens[-4:-1] == (ids("blue"), ids("wet"), ids("dry"))


def test_long_questions_keep_their_end_for_a_label_too(tiny, label_base):
    reader = tiny.make_fitter(*label_base).reader
    (item,) = reader.items([Example("red " * 100 + "blue", "low")])
    special = reader.tokenizer
    assert len(item.tokens) == 32
    assert item.tokens[0] == special.cls_token_id
    assert item.tokens[-2:] == (special.convert_tokens_to_ids("blue"), special.sep_token_id)


def test_bad_examples_are_refused_before_anything_is_computed(tiny, label_base, text_base):
    good = tiny.make_examples("label", 3)
    with pytest.raises(DataError, match=r"user 'b', example 1.*'purple' is no label.*low, middle, high"):
        tiny.fit(tiny.make_fitter(*label_base), {"a": good, "b": [good[0], Example("red", "purple")]})
    with pytest.raises(DataError, match="user 'c'"):
        tiny.fit(tiny.make_fitter(*label_base), {"a": good, "c": []})
    with pytest.raises(DataError, match="target is empty"):
        tiny.fit(tiny.make_fitter(*text_base), {"a": [Example("red", "")]})
    with pytest.raises(DataError, match="user 'a', example 1: The prompt is blank"):
        tiny.fit(tiny.make_fitter(*text_base), {"a": [Example("red", "blue"), Example(" \n", "blue")]})


def test_a_loss_that_is_not_finite_names_the_user(tiny):
    base, tokenizer = tiny.make_base("label")
    fitter = tiny.make_fitter(base, tokenizer)
    fresh = fitter.model.fresh
    fitter.model.fresh = lambda generator: {name: value * math.inf for name, value in fresh(generator).items()}
    fitter.model.put = lambda slot, tensors: fitter.model.stacked[next(iter(tensors))].data[slot].fill_(math.inf)
    with pytest.raises(TrainingError, match="user 'user 0'"):
        tiny.fit(fitter, make_users(tiny, "label", (3,)))
