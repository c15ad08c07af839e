"""A bundle with experts: written, read, scored, judged, and refused where it does not fit."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel

from penchant.artifacts import Manifest
from penchant.backbone.activations import ActivationCache, ActivationReader
from penchant.backbone.loading import load_backbone
from penchant.backbone.reading import TextReader, trainable_part
from penchant.errors import ArtifactError
from penchant.evaluation.evaluate import Evaluator, dataset_texts
from penchant.evaluation.experts import expert_table
from penchant.evaluation.figures import expert_map
from penchant.evaluation.metrics import Bootstrap, accuracy_table, paired_differences
from penchant.evaluation.report import write_report
from penchant.reward.config import ExpertSettings
from penchant.reward.experts import ExpertModel, add_experts, add_lora, start_gates_as_clusters
from penchant.scoring.bundle import read_bundle, write_bundle
from penchant.scoring.experts import read_experts, save_model
from penchant.scoring.forgetting import forget_users
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.tables import ExpertTable
from penchant.tensors import read_tensors, write_tensors

SETTINGS = ExpertSettings(num_experts=3, r=2, gate_hidden=8, layers=1)


@pytest.fixture(scope="module")
def made(bundle):
    """The bundle's heads over a base with experts whose weights are not zero, as if trained."""
    _, parts, _ = bundle
    torch.manual_seed(0)
    whole, _ = load_backbone(parts.backbone)
    base = trainable_part(whole, SETTINGS.layers, dropout=False)
    dim = parts.user_UD.shape[1]
    models = {
        "uniform": ExpertModel(add_lora(base, SETTINGS), parts.uniform, parts.backbone),
        "personalised": ExpertModel(add_experts(base, SETTINGS, user_dim=dim), parts.personalised, parts.backbone),
    }
    for model in models.values():
        for name, parameter in model.trainable().items():
            if "_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    start_gates_as_clusters(models["personalised"], parts.prototype_KD[:3])
    return models


@pytest.fixture(scope="module")
def expert_bundle(bundle, made, planted, tmp_path_factory):
    _, parts, _ = bundle
    folder = tmp_path_factory.mktemp("experts")
    for name, model in made.items():
        save_model(model, folder / "models" / name, base_name=parts.backbone.name)
    whole = dataclasses.replace(parts, experts=read_experts(folder / "models", SETTINGS))
    write_bundle(folder / "bundle", whole, dataset=planted[0].fingerprint, counts={})
    return folder / "bundle"


def test_saved_and_loaded_gives_the_same_scores(expert_bundle, made, planted, bundle):
    texts = dataset_texts(planted[0])[:6]
    _, parts, _ = bundle
    model = PersonalisedRewardModel.load(expert_bundle)
    tables = model.texts.tables(texts)
    _, tokenizer = load_backbone(parts.backbone)
    rows, users = np.arange(6), parts.user_UD[torch.tensor([0, 7, 20, 33, 41, 59])]
    whole, _ = load_backbone(parts.backbone)
    cache = ActivationCache(expert_bundle.parent / "none", budget_bytes=0)
    reader = TextReader(tokenizer, parts.backbone, ActivationReader(whole, tokenizer, parts.backbone, 1, cache))
    for name, asked in (("personalised", users), ("uniform", None)):
        expected = ExpertTable(made[name].eval(), reader, texts).score(rows, asked)
        assert torch.allclose(tables[name].score(rows, asked), expected, atol=1e-6), name
    frozen = model.texts.tables(texts, torch.from_numpy(model.extractor.features(texts)))["frozen"].score(rows, users)
    assert not torch.allclose(frozen, tables["personalised"].score(rows, users), atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_scores_as_the_cpu_does(expert_bundle, planted):
    prompt, texts = planted[0].prompts[0], planted[0].responses[:5]
    user = str(PersonalisedRewardModel.load(expert_bundle).parts.user_ids[3])
    own, other = (
        PersonalisedRewardModel.load(expert_bundle, device=device).score(user, prompt, texts) for device in ("cpu", "cuda")
    )
    assert other.score == pytest.approx(own.score, abs=1e-3)
    assert other.uniform == pytest.approx(own.uniform, abs=1e-3)


def test_who_is_forgotten_has_no_experts_and_the_others_keep_theirs(expert_bundle, bundle, tmp_path):
    first, second = bundle[1].user_ids[:2]
    forget_users(expert_bundle, [first], out=tmp_path / "without")
    asked = ("Explain tides.", ["The moon pulls.", "Ha!"])
    before, after = (PersonalisedRewardModel.load(folder) for folder in (expert_bundle, tmp_path / "without"))
    assert after.score(second, *asked).score == before.score(second, *asked).score
    assert after.score(first, *asked).score == before.score("nobody", *asked).score != before.score(first, *asked).score


def test_answers_name_who_was_asked_for_and_users_differ(expert_bundle, bundle):
    model, ids = PersonalisedRewardModel.load(expert_bundle), bundle[1].user_ids
    answers = [model.score(user, "Explain tides.", ["The moon pulls.", "Ha!"]) for user in (ids[0], ids[1], "nobody")]
    assert [answer.personalisation for answer in answers] == ["seen", "seen", "unknown"]
    assert answers[0].uniform == answers[2].uniform == answers[2].score
    assert answers[0].score != answers[0].uniform


def test_adapters_are_in_pefts_layout(expert_bundle, bundle):
    _, parts, _ = bundle
    folder = expert_bundle / "reward" / "experts" / "personalised"
    base = trainable_part(load_backbone(parts.backbone)[0], 1, dropout=False)
    loaded = PeftModel.from_pretrained(base, str(folder))
    saved = read_tensors(folder / "adapter_model.safetensors")
    named = {name.replace(".default", ""): value for name, value in loaded.named_parameters()}
    for name, value in saved.items():
        assert torch.equal(named[name.replace(".default", "")], value), name
    assert {path.suffix for path in expert_bundle.rglob("*") if path.is_file()} == {".json", ".safetensors", ".parquet"}
    assert Manifest.read(expert_bundle, verify=True).experts["num_experts"] == 3


def test_table_encodes_each_text_once_under_each_route(expert_bundle, bundle, planted):
    model = PersonalisedRewardModel.load(expert_bundle)
    texts, users = dataset_texts(planted[0])[:5], bundle[1].user_UD
    table, encoded = model.texts.tables(texts)["personalised"], []
    table.on_progress = lambda done, total: encoded.append(done)
    rows = np.tile(np.arange(5), 60)
    first = table.score(rows, users.repeat_interleave(5, 0))
    assert encoded == [15]
    assert torch.equal(table.score(rows, users.repeat_interleave(5, 0)), first)
    assert encoded == [15]


def test_a_service_does_not_encode_the_same_texts_again(expert_bundle, bundle, monkeypatch):
    model, user = PersonalisedRewardModel.load(expert_bundle, remembered_texts=100), str(bundle[1].user_ids[0])
    first = model.score(user, "Explain tides.", ["The moon pulls.", "Ha!"])
    remembered, encoded = model.texts.looked_up()

    def not_again(*_):
        raise AssertionError("a text is encoded again")

    monkeypatch.setattr(ExpertTable, "_encode", not_again)
    again = model.score(user, "Explain tides.", ["The moon pulls.", "Ha!"])
    assert (again.score, again.uniform) == (first.score, first.uniform)
    assert model.texts.looked_up() == (remembered + 4, encoded), "two texts, personalised and uniform"


def test_judged_beside_the_frozen_phase_and_shown(expert_bundle, bundle, planted, tmp_path):
    dataset, model = planted[0], PersonalisedRewardModel.load(expert_bundle)
    evaluator = Evaluator(model, dataset, bundle[2])
    users = evaluator.users()
    judged = evaluator.judge(users)
    assert list(judged.margins) == ["uniform", "personalised", "wrong_user", "frozen"]
    bootstrap = Bootstrap(judged, resamples=20)
    table = expert_table(model.texts.experts("personalised"), dataset, users, evaluator)
    assert sum(table["load"]["seen"]) == pytest.approx(1)
    assert table["idle"] == 0
    assert set(table["by_group"]) == set(dataset.group_names)
    for example in table["examples"]:
        assert len(example["rises"]) == len(example["falls"]) == 3
        assert example["rises"] != example["falls"]
    assert sum(example["users"] for example in table["examples"]) == dataset.seen.sum()
    metrics = {
        "accuracy": accuracy_table(bootstrap),
        "differences": paired_differences(bootstrap),
        "experts": table | {"history": [{"step": 1, "loss": {"uniform": 0.6, "personalised": 0.5}}], "steps": 1, "seconds": 2.0},
        "recovered": {},
        "data": {},
        "run": {},
        "graph": {},
    }
    assert list(expert_map(metrics).data[0].z[0]) == table["load"]["seen"]
    assert "personalised-frozen" in metrics["differences"]
    write_report(tmp_path / "report.html", metrics, None)
    html = (tmp_path / "report.html").read_text()
    assert "No expert is idle." in html
    assert "Experts − frozen base" in html


def test_experts_of_another_base_are_refused(expert_bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(expert_bundle, copy)
    path = copy / "reward" / "experts" / "personalised" / "adapter_model.safetensors"
    tensors = read_tensors(path)
    write_tensors(path, {name: torch.cat([tensor, tensor], dim=-1) for name, tensor in tensors.items()})
    with pytest.raises(ArtifactError, match="do not fit this base"):
        PersonalisedRewardModel.load(copy).texts.experts("personalised")
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        PersonalisedRewardModel.load(copy)


def test_bundle_without_experts_has_none(bundle):
    assert read_bundle(bundle[0])[1].experts is None
    assert Manifest.read(bundle[0]).experts == {}
