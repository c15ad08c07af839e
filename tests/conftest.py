"""A hermetic environment, and what many tests need. The environment is set before anything is imported."""

import os

os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """A feature cache of the tests' own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["PENCHANT_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> str:
    """A folder with a tiny BERT of random weights, and a word-level tokenizer of the planted world's words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from penchant.data.planted import _OPENINGS, _QUESTIONS, _SUBJECTS, ATTRIBUTES

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    splitter = Whitespace()
    texts = [*_OPENINGS, *_QUESTIONS, *_SUBJECTS, *(text for texts in ATTRIBUTES.values() for text in texts)]
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=160,
    )
    folder = tmp_path_factory.mktemp("backbone")
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def planted():
    """A small planted data set and its truth."""
    from penchant.data.planted import PlantedWorld, generate

    return generate(PlantedWorld(users=60, unseen_users=12, prompts=40, comparisons_per_user=12, seed=3))
