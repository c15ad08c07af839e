from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from penchant.adapters.bases import lowest_adapted, peft_config
from penchant.adapters.config import AdapterSettings, FittingSettings
from penchant.adapters.examples import Example
from penchant.adapters.fitting import AdapterFitter
from penchant.adapters.items import ItemReader
from penchant.backbone.grouped import GroupedModel
from penchant.data.lamp import TASKS
from penchant.data.lamp.planted import LampWorld, save_planted_lamp
from penchant.data.lamp.reading import read_lamp

WORDS = ["red", "green", "blue", "round", "square", "flat", "small", "large", "old", "new", "wet", "dry"]
LABELS = ["low", "middle", "high"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def make_tokenizer(answers):
    """Words as tokens; for an encoder between [CLS] and [SEP]."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    template = "[CLS] $A [SEP]" if answers == "label" else "[CLS] $A"
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"label": {"cls_token": "[CLS]", "sep_token": "[SEP]"}, "text": {"bos_token": "[CLS]", "eos_token": "[SEP]"}}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **names[answers])


def make_base(answers, dtype=torch.float64):
    """A tiny frozen base of random weights: an encoder with a label head, or a causal language model; and its tokenizer."""
    torch.manual_seed(0)
    size = {"vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    size |= {"intermediate_size": 32, "initializer_range": 0.3, "pad_token_id": 0}
    if answers == "label":
        names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: number for number, name in enumerate(LABELS)}}
        base = BertForSequenceClassification(BertConfig(**size, **names, max_position_embeddings=40))
    else:
        base = LlamaForCausalLM(LlamaConfig(**size, num_key_value_heads=2, bos_token_id=2, eos_token_id=3))
    return base.to(dtype).eval().requires_grad_(False), make_tokenizer(answers)


@pytest.fixture(scope="session", params=["label", "text"])
def any_base(request):
    """(answers, base, tokenizer), of both kinds, in float64."""
    return (request.param, *make_base(request.param))


@pytest.fixture(scope="session")
def label_base():
    return make_base("label")


@pytest.fixture(scope="session")
def text_base():
    return make_base("text")


def make_examples(answers, count, seed=0):
    """Random prompts of different lengths, with random targets."""
    drawn = torch.Generator().manual_seed(seed)

    def words(most):
        number = int(torch.randint(1, most + 1, (), generator=drawn))
        return " ".join(WORDS[int(at)] for at in torch.randint(len(WORDS), (number,), generator=drawn))

    label = torch.randint(len(LABELS), (count,), generator=drawn)
    return [Example(words(12), LABELS[int(label[at])] if answers == "label" else words(3)) for at in range(count)]


def make_fitter(base, tokenizer, adapter=None, slots=4, cache=None, cut=True, **fitting):
    adapter = adapter or AdapterSettings(r=2, alpha=6)
    lowest = lowest_adapted(base, adapter) if cut else 0
    model = GroupedModel(base, peft_config(adapter, base, "tiny"), slots=slots, lowest=lowest)
    reader = ItemReader(base, tokenizer, max_tokens=32, lowest=lowest, cache_bytes=2**24 if cache else 0, cache_folder=cache)
    return AdapterFitter(model, reader, FittingSettings(**({"batch_size": 3, "learning_rate": 0.02} | fitting)))


def fit(fitter, users):
    return {fitted.user: fitted for fitted in fitter.fit(users)}


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="session")
def tiny():
    """What the tests of adapters make tiny things with."""
    helpers = (make_base, make_examples, make_fitter, fit, assert_same)
    return SimpleNamespace(**{helper.__name__: helper for helper in helpers})


@pytest.fixture(scope="session")
def planted_tasks(tmp_path_factory):
    """Every task, planted: three users each, without noise."""
    folder = tmp_path_factory.mktemp("lamp")
    for name in TASKS:
        save_planted_lamp(LampWorld(task=name, users=3, other_users=3, items=6, queries=2, noise=0), folder / name)
    return {name: read_lamp(folder / name, task) for name, task in TASKS.items()}
