"""A hermetic environment, and what many tests need. The environment is set before anything is imported."""

import itertools
import logging
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
def s3_server():
    """The endpoint of a server, with credentials for it in the environment."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        yield f"http://{host}:{port}"
    server.stop()


_NUMBER = itertools.count()


@pytest.fixture
def bucket(s3_server):
    """The URI of a fresh bucket."""
    import boto3

    name = f"bucket-{next(_NUMBER)}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=name)
    return f"s3://{name}"


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


@pytest.fixture(scope="session")
def bundle(planted, tiny_backbone, tmp_path_factory):
    """A small bundle, trained in this process without Ray: its folder, its parts and the features of its responses."""
    import numpy as np

    from penchant.backbone.config import BackboneSettings
    from penchant.backbone.features import FeatureExtractor
    from penchant.evaluation.evaluate import response_keys
    from penchant.graph.collectives import Collective
    from penchant.graph.config import CandidateSettings, EncoderSettings, OptimizationSettings
    from penchant.graph.neighbours import NeighbourIndex
    from penchant.graph.preference_graph import PreferenceShard
    from penchant.graph.training import GraphTrainer
    from penchant.reward.config import RewardSettings
    from penchant.reward.training import RewardData, RewardTrainer, UserTable
    from penchant.scoring.bundle import BundleParts, write_bundle
    from penchant.scoring.config import OnboardingSettings
    from penchant.scoring.onboarding import fit_prototypes
    from penchant.scoring.questions import QuestionPool

    dataset, _ = planted
    backbone = BackboneSettings(name=tiny_backbone, max_tokens=64)
    texts = [(dataset.prompts[at], text) for at, text in zip(dataset.prompt_of_response, dataset.responses, strict=True)]
    features = torch.from_numpy(FeatureExtractor(backbone).features(texts))
    seen = int(dataset.seen.sum())
    assert dataset.seen[:seen].all(), "the planted world puts seen users first"
    shards = []
    for split in ("train", "valid"):
        part = dataset.select(split=split, cohort="seen")
        columns = (part.user, part.chosen, part.rejected, np.arange(len(part)))
        shards.append(PreferenceShard.build(*columns, first_user=0, num_users=seen, num_responses=len(texts)))
    graph_settings = CandidateSettings(
        encoder=EncoderSettings(dim=16, num_layers=2), optimization=OptimizationSettings(max_steps=40)
    )
    graph = GraphTrainer(graph_settings, *shards, features=features, collective=Collective())
    list(graph.run())
    graph.encoder.load_state_dict(graph.best_state)
    result = graph.embeddings()
    rows = dataset.select(split=("train", "valid"), cohort="seen")
    reward = RewardTrainer(
        RewardSettings(steps=200),
        RewardData(
            feature_RF=features,
            chosen=rows.chosen,
            rejected=rows.rejected,
            valid=rows.split == 1,
            users={"uniform": None, "personalised": UserTable(result.user, rows.user)},
        ),
    )
    list(reward.run())
    train = dataset.select(split="train", cohort="seen")
    parts = BundleParts(
        backbone=backbone,
        encoder=graph.encoder.eval(),
        user_ids=dataset.user_ids[:seen],
        user_UD=result.user,
        response_ids=dataset.response_ids,
        response_keys=np.array(response_keys(dataset), dtype=object),
        response_layers=result.response_layers,
        response_degree=result.response_degree,
        neighbours=NeighbourIndex.build(train.user, train.chosen, result.user.numpy(), result.response_layers[-1].numpy()),
        head_settings=RewardSettings().head,
        personalised=reward.heads["personalised"].eval(),
        uniform=reward.heads["uniform"].eval(),
        prototype_KD=torch.from_numpy(fit_prototypes(result.user.numpy(), 8)),
        questions=QuestionPool(texts[:24], features[:24]),
        onboarding=OnboardingSettings(kind="neighbours", temperatures=(0.1,)),
    )
    folder = tmp_path_factory.mktemp("trained") / "bundle"
    write_bundle(folder, parts, dataset=dataset.fingerprint, counts={"users": seen})
    return folder, parts, features


@pytest.fixture(scope="session")
def personal_writer(tmp_path_factory):
    """A folder with a tiny Llama of random weights in base/, and in store/ an adapter of each of four users, so strong that each
    writes otherwise; that of `locked` is encrypted with a key of 32 times "k"."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from penchant.adapters.bases import base_fingerprint, peft_config
    from penchant.adapters.cards import Card
    from penchant.adapters.config import AdapterSettings
    from penchant.adapters.store import AdapterStore
    from penchant.backbone.grouped.model import adapter_shapes

    folder = tmp_path_factory.mktemp("writer")
    text = "the moon pulls on sea and tides are high low slow old new calm blue round why how explain look up"
    words = text.split()
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[START]", "[END]", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[START] $A", special_tokens=[("[START]", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[START]", eos_token="[END]"
    ).save_pretrained(folder / "base")
    torch.manual_seed(0)
    size = {"vocab_size": len(vocabulary), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3}
    base = LlamaForCausalLM(LlamaConfig(**size, pad_token_id=0, bos_token_id=2, eos_token_id=3)).eval()
    base.save_pretrained(folder / "base")
    config = peft_config(AdapterSettings(r=4, alpha=8), base, str(folder / "base"))
    shapes = adapter_shapes(base, config)
    store = AdapterStore.create(folder / "store", fingerprint=base_fingerprint(base), config=config, shapes=shapes)
    for number, user in enumerate(["ann", "bob", "carl/ä", "locked"]):
        generator = torch.Generator().manual_seed(number)
        tensors = {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        store.put(Card(user=user, base=store.fingerprint), tensors, key=b"k" * 32 if user == "locked" else None)
    return folder
