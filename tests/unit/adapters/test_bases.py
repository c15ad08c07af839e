import pytest
import torch
from peft import get_peft_model, set_peft_model_state_dict
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    RobertaConfig,
)

from penchant.adapters.bases import base_fingerprint, label_numbers, load_task_base, lowest_adapted, peft_config
from penchant.adapters.config import AdapterSettings, FittingSettings, PersonalSettings, TaskBaseSettings
from penchant.adapters.examples import Example
from penchant.adapters.items import ItemReader
from penchant.adapters.task_stage import fit_task_base
from penchant.backbone.grouped import GroupedModel
from penchant.config import load_settings
from penchant.errors import BackboneError, ConfigError


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """Folders of tiny bases, by what they answer with."""
    folders = {}
    for answers in ("label", "text"):
        base, tokenizer = tiny.make_base(answers, torch.float32)
        folders[answers] = tmp_path_factory.mktemp(answers)
        base.save_pretrained(folders[answers])
        tokenizer.save_pretrained(folders[answers])
    return folders


def paths(base, settings):
    shapes = GroupedModel(base, peft_config(settings, base, "tiny"), slots=1).shapes
    return {name.removeprefix("base_model.model.") for name in shapes}


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_layers_are_the_bases_top_ones(tiny, kind):
    for answers, layers in (("label", "bert.encoder.layer."), ("text", "model.layers.")):
        base, _ = tiny.make_base(answers)
        found = [
            {
                path.removeprefix(layers)[0]
                for path in paths(base, AdapterSettings(kind=kind, layers=count))
                if path.startswith(layers)
            }
            for count in (None, 1, 2)
        ]
        assert found == [{"0", "1", "2"}, {"2"}, {"1", "2"}]
        assert lowest_adapted(base, AdapterSettings(layers=2)) == 1


def test_ia3_knows_its_feed_forward_layers(tiny):
    base, _ = tiny.make_base("label")
    for layers in (None, 2):
        shapes = GroupedModel(base, peft_config(AdapterSettings(kind="ia3", layers=layers), base, "tiny"), slots=1).shapes
        assert shapes["base_model.model.bert.encoder.layer.2.output.dense.ia3_l"] == (1, 32)
        assert shapes["base_model.model.bert.encoder.layer.2.attention.self.key.ia3_l"] == (16, 1)
    own = AdapterSettings(kind="ia3", target_modules=("query", "output.dense"), feedforward_modules=())
    shapes = GroupedModel(base, peft_config(own, base, "tiny"), slots=1).shapes
    assert shapes["base_model.model.bert.encoder.layer.0.output.dense.ia3_l"] == (16, 1)


def test_what_the_settings_refuse(tiny):
    base, _ = tiny.make_base("label")
    with pytest.raises(ConfigError, match="prompt tuning has no layers"):
        load_settings(PersonalSettings, None, ["adapter.kind=prompt_tuning", "adapter.layers=2"])
    with pytest.raises(BackboneError, match="no 5 layers") as error:
        peft_config(AdapterSettings(layers=5), base, "tiny")
    assert error.value.where == "adapter.layers"
    with pytest.raises(BackboneError, match="dense, key, query, value"):
        paths(base, AdapterSettings(target_modules=("nothing",)))


def test_prompt_tuning_does_not_go_with_a_decoders_label_head(tiny):
    tuned = AdapterSettings(kind="prompt_tuning", virtual_tokens=2)
    decoder = LlamaForSequenceClassification(tiny.make_base("text")[0].config)
    with pytest.raises(BackboneError, match=r"decoder's label head.*Use lora") as refused:
        peft_config(tuned, decoder, "tiny")
    assert refused.value.where == "adapter.kind"
    peft_config(AdapterSettings(layers=1), decoder, "tiny")
    for answers in ("label", "text"):
        peft_config(tuned, tiny.make_base(answers)[0], "tiny")


@pytest.mark.parametrize(("config", "most"), [(BertConfig, 40), (RobertaConfig, 38)])
def test_items_longer_than_the_bases_positions_are_refused(config, most, tiny):
    size = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    base = AutoModelForSequenceClassification.from_config(config(**size, max_position_embeddings=40))
    tokens = torch.full((1, most), 5)
    base(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    tokenizer = tiny.make_base("label")[1]
    ItemReader(base, tokenizer, max_tokens=most)
    with pytest.raises(ConfigError, match=f"{most + 1} tokens do not fit the base: it has {most} positions") as refused:
        ItemReader(base, tokenizer, max_tokens=most + 1)
    assert refused.value.where == "base.max_tokens"


def test_labels_by_name_or_number():
    def numbers(names):
        config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
        return label_numbers(BertForSequenceClassification(config))

    assert numbers(["bad", "good"]) == {"0": 0, "1": 1, "bad": 0, "good": 1}
    assert numbers(["1", "2", "3"]) == {"1": 0, "2": 1, "3": 2}, "a rating of 1 is not label number 1"


def test_a_base_is_loaded_frozen_and_told_by_its_weights(saved):
    base, tokenizer = load_task_base(TaskBaseSettings(name=str(saved["label"])))
    assert not base.training
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert base_fingerprint(base) == base_fingerprint(load_task_base(TaskBaseSettings(name=str(saved["label"])))[0])
    fresh = TaskBaseSettings(name=str(saved["text"]), answers="text")
    assert base_fingerprint(load_task_base(fresh)[0]) != base_fingerprint(base)
    with pytest.raises(BackboneError, match="no label head"):
        label_numbers(load_task_base(fresh)[0])
    assert tokenizer.pad_token_id == base.config.pad_token_id
    with pytest.raises(BackboneError, match="no base model in this folder"):
        load_task_base(TaskBaseSettings(name=str(saved["label"] / "nothing")))


def test_a_fresh_head_is_the_same_each_time(tiny_backbone):
    settings = TaskBaseSettings(name=tiny_backbone, labels=("1", "2", "3"))
    first, second = (load_task_base(settings)[0] for _ in range(2))
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert label_numbers(first) == {"1": 0, "2": 1, "3": 2}


@pytest.mark.parametrize("answers", ["label", "text"])
def test_the_task_stage_merges_its_adapter_into_the_base(saved, answers, tmp_path):
    settings = PersonalSettings(
        base=TaskBaseSettings(name=str(saved[answers]), answers=answers, max_tokens=32),
        adapter=AdapterSettings(r=2),
        fitting=FittingSettings(epochs=4, learning_rate=0.02, cache_gib=0),
    )
    examples = [Example("red round", "low"), Example("blue flat", "high"), Example("green small", "middle")]
    fitted = fit_task_base(settings, examples, tmp_path / "task")
    before, tokenizer = load_task_base(settings.base)
    after, _ = load_task_base(TaskBaseSettings(name=str(tmp_path / "task"), answers=answers))
    assert type(after) is type(before)
    assert base_fingerprint(after) != base_fingerprint(before)
    tokens = tokenizer(["red round", "wet dry"], return_tensors="pt")
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    stock = get_peft_model(before, peft_config(settings.adapter, before, "tiny"))
    set_peft_model_state_dict(stock, fitted.tensors)
    with torch.no_grad():
        torch.testing.assert_close(after(**tokens).logits, stock.eval()(**tokens).logits, rtol=0, atol=1e-5)


def test_the_second_worker_of_a_group_writes_its_base_too(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.distributed.mixin._is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr("transformers.distributed.mixin._get_torch_distributed_rank", lambda: 1)
    settings = PersonalSettings(
        base=TaskBaseSettings(name=str(saved["label"]), max_tokens=32),
        adapter=AdapterSettings(r=2),
        fitting=FittingSettings(epochs=1, cache_gib=0),
    )
    fit_task_base(settings, [Example("red round", "low")], tmp_path / "task")
    load_task_base(TaskBaseSettings(name=str(tmp_path / "task")))


def test_a_prompt_cannot_be_the_task_stage(tmp_path):
    with pytest.raises(ConfigError, match="cannot be merged"):
        fit_task_base(PersonalSettings(adapter=AdapterSettings(kind="prompt_tuning")), [], tmp_path / "task")
