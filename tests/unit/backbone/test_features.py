import numpy as np
import pytest
import torch

from penchant.backbone.cache import FeatureCache, text_key
from penchant.backbone.config import BackboneSettings
from penchant.backbone.features import FeatureExtractor, cache_name
from penchant.backbone.loading import locate
from penchant.backbone.standardise import Standardise
from penchant.backbone.surface import SURFACE_NAMES, surface_features
from penchant.errors import BackboneError, ConfigError
from penchant.tensors import read_tensors, write_rows

TEXTS = [("Explain tides.", "1. Start with the basics. 2. Look at the details."), ("Explain tides.", "Try it today!"), ("b", "a")]


@pytest.fixture
def settings(tiny_backbone):
    return BackboneSettings(name=tiny_backbone, max_tokens=32)


def test_features_are_the_same_cached_or_not_in_any_batch(settings, tmp_path):
    plain = FeatureExtractor(settings).features(TEXTS)
    cached = FeatureExtractor(settings, FeatureCache(tmp_path))
    first = cached.features(TEXTS)
    assert np.array_equal(first, cached.features(TEXTS))
    assert np.array_equal(first, plain)
    alone = np.concatenate([FeatureExtractor(settings).features([text]) for text in TEXTS])
    assert np.allclose(alone, plain, atol=2e-3), "features are kept in float16"
    assert plain.shape == (3, 2 * 32 + len(SURFACE_NAMES))


def test_workers_fill_the_cache_together(settings, tmp_path):
    texts = [(f"Prompt {number}", "Try it today!") for number in range(20)]
    counts = [
        FeatureExtractor(settings, FeatureCache(tmp_path)).fill_cache([texts, texts], rank=rank, world_size=2)
        for rank in range(2)
    ]
    assert sum(counts) == 20, "a worker that starts late takes its own share all the same"
    assert min(counts) > 0
    assert FeatureCache(tmp_path).keys() == {text_key(text) for text in texts}
    untouched = FeatureExtractor(settings, FeatureCache(tmp_path))
    untouched._load = lambda: pytest.fail("the base model was loaded for cached texts")
    untouched.features(texts)


def test_features_in_a_file_are_those_in_memory(settings, tmp_path):
    texts = [(f"Prompt {number % 7}", f"Try it today! {number % 5}") for number in range(90)]
    batches = [texts[:40], texts[40:41], texts[41:]]
    extractor = FeatureExtractor(settings, FeatureCache(tmp_path / "cache"))
    path = tmp_path / "features.safetensors"
    extractor.write_features(batches, lambda width: write_rows(path, "features", (len(texts), width)))
    kept = read_tensors(path)["features"].numpy()
    assert kept.dtype == np.float16
    assert np.array_equal(kept, extractor.features(texts).astype(np.float16)), "texts that stand twice have their features twice"
    assert [found.name for found in tmp_path.glob("*features*")] == ["features.safetensors"]


def test_a_prompt_that_fills_the_window_leaves_room_for_the_response(settings):
    extractor = FeatureExtractor(settings.model_copy(update={"surface": False, "prompt_characters": 2000, "max_tokens": 16}))
    one, other = extractor.features([("tides " * 40, "Step one."), ("tides " * 40, "Be careful.")])
    assert np.isfinite(one).all()
    assert not np.array_equal(one, other)
    # The prompt is halved till it leaves room: 240 characters, 120, 60, which are 10 words.
    (same,) = extractor.features([("tides " * 10, "Step one.")])
    assert np.array_equal(one, same)


def test_of_a_conversation_the_end_may_be_kept(settings, tmp_path):
    settings = settings.model_copy(update={"surface": False, "prompt_characters": 30})
    left = settings.model_copy(update={"prompt_truncation_side": "left"})
    told, other = (f"{start} My dog is ill. Which vaccines does it need?" for start in ("Hello there!", "Good day to you."))

    def features(settings, *prompts):
        return FeatureExtractor(settings).features([(prompt, "Ask a vet.") for prompt in prompts])

    assert np.array_equal(*features(left, told, other)), "they end alike"
    assert not np.array_equal(*features(settings, told, other)), "they begin differently"
    assert np.array_equal(features(left, told), features(settings, told[-30:]))
    assert np.array_equal(features(left, "Why?"), features(settings, "Why?")), "a short prompt is whole"
    assert cache_name(left) != cache_name(settings)
    filled = left.model_copy(update={"prompt_characters": 2000, "max_tokens": 16})
    assert np.array_equal(features(filled, "begin " + "tides " * 40), features(filled, "start " + "tides " * 40))


def test_what_was_read_before_a_setting_came_is_known_by_its_settings(settings):
    assert "prompt_truncation_side" not in settings.model_dump()
    left = settings.model_copy(update={"prompt_truncation_side": "left"})
    assert BackboneSettings.model_validate(left.model_dump()) == left
    assert BackboneSettings.model_validate(settings.model_dump()) == settings


def test_damaged_block_is_computed_again(settings, tmp_path):
    extractor = FeatureExtractor(settings, FeatureCache(tmp_path))
    whole = extractor.features(TEXTS)
    for block in tmp_path.glob("block-*"):
        block.write_bytes(block.read_bytes()[:20])
    assert np.array_equal(extractor.features(TEXTS), whole)


def test_key_tells_prompt_from_response():
    assert text_key(("ab", "c")) != text_key(("a", "bc"))
    assert text_key(("a", "b")) != text_key(("b", "a"))


def test_key_is_what_caches_and_bundles_on_disk_hold():
    assert text_key(("Why?", "Because é \ud800.")).hex() == "f0aae33218f209c0263e8aee45d58785"


def test_cache_is_of_one_base_and_window(settings, tmp_path):
    name = cache_name(settings)
    assert name == cache_name(settings.model_copy(update={"batch_size": 1, "surface": False}))
    assert name != cache_name(settings.model_copy(update={"max_tokens": 31}))
    assert name != cache_name(settings.model_copy(update={"pooling": ("last",)}))


def test_base_model_is_frozen_and_in_eval_mode(settings):
    model = FeatureExtractor(settings).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_base_model_that_is_not_there(tmp_path):
    with pytest.raises(BackboneError, match=r"no config\.json"):
        locate(str(tmp_path))
    with pytest.raises(BackboneError, match="Without a network"):
        FeatureExtractor(BackboneSettings(name="no-org/no-model")).check()


def test_a_window_that_the_base_has_no_positions_for_is_refused_early(tiny_backbone):
    FeatureExtractor(BackboneSettings(name=tiny_backbone, max_tokens=160)).check()
    with pytest.raises(ConfigError, match="161 tokens do not fit the base: it has 160 positions") as refused:
        FeatureExtractor(BackboneSettings(name=tiny_backbone, max_tokens=161)).check()
    assert refused.value.where == "backbone.max_tokens"


def test_surface_reads_the_whole_response():
    rows = surface_features(["one two", "one two " * 1000, "- a\n- b\n\n# Title\nWhy? I know!"])
    assert rows.shape == (3, len(SURFACE_NAMES))
    column = {name: rows[:, number] for number, name in enumerate(SURFACE_NAMES)}
    assert column["log_words"][1] > column["log_words"][0] + 5
    assert column["list_lines"].tolist() == [0, 0, 0.5]
    assert column["heading_lines"][2] == 0.25
    assert column["first_person"][2] > 0
    assert surface_features([]).shape == (0, len(SURFACE_NAMES))
    assert np.isfinite(surface_features([" ", "\n", "."])).all()


def test_standardise():
    module = Standardise(3)
    values = torch.randn(100, 3) * torch.tensor([1.0, 50.0, 0.0]) + torch.tensor([0.0, 7.0, 4.0])
    module.fit(values)
    out = module(values)
    assert torch.allclose(out.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(out[:, :2].std(0, correction=0), torch.ones(2), atol=1e-5)
    assert (out[:, 2] == 0).all(), "a constant feature says nothing"


def test_folder_with_other_weights_is_another_cache(settings, tiny_backbone, tmp_path):
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(tiny_backbone, copy)
    before = cache_name(settings.model_copy(update={"name": str(copy)}))
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert cache_name(settings.model_copy(update={"name": str(copy)})) != before
