import pytest
import torch

from penchant.backbone.activations import ActivationCache, ActivationReader
from penchant.backbone.cache import text_key
from penchant.backbone.config import BackboneSettings
from penchant.backbone.cut import keep_upper
from penchant.backbone.loading import load_backbone
from penchant.errors import BackboneError

TEXTS = [
    ("Explain tides.", "1. Start with the basics. 2. Look at the details."),
    ("Explain tides.", "Try it today!"),
    ("What should I know about wool?", "Ha!"),
]
PLENTY = 10**9


@pytest.fixture
def settings(tiny_backbone):
    return BackboneSettings(name=tiny_backbone, max_tokens=32, batch_size=2)


def reader(settings, folder, budget=PLENTY, layer=1):
    return ActivationReader(*load_backbone(settings), settings, layer, ActivationCache(folder, budget_bytes=budget))


def test_upper_layers_on_cached_activations_are_the_whole_base(settings, tmp_path):
    cached = reader(settings, tmp_path)
    assert cached.fill(TEXTS) == 0
    tokens, lower = cached.batch(TEXTS)
    assert cached.recomputed == 0
    upper, _ = load_backbone(settings)
    keep_upper(upper, 1)
    with torch.no_grad():
        out = upper(**tokens, lower=lower).last_hidden_state
        expected = cached.model(**tokens).last_hidden_state
    kept = tokens["attention_mask"].bool()
    assert torch.allclose(out[kept], expected[kept], atol=5e-3), "float16 in between"


def test_another_process_finds_what_is_there(settings, tmp_path):
    reader(settings, tmp_path).fill(TEXTS)
    again = reader(settings, tmp_path)
    again._compute = lambda texts: pytest.fail("computed again")
    assert again.fill(TEXTS) == 0
    assert again.batch(TEXTS)[1].shape[0] == 3
    assert len(again.cache) == 3


def test_what_does_not_fit_is_computed_each_time_and_said(settings, tmp_path):
    whole = reader(settings, tmp_path / "whole")
    whole.fill(TEXTS)
    tight = reader(settings, tmp_path / "tight", budget=100)
    assert tight.fill(TEXTS) == 3
    assert not list((tmp_path / "tight").glob("*")), "nothing is written beyond the budget"
    assert torch.allclose(tight.batch(TEXTS)[1], whole.batch(TEXTS)[1], atol=1e-3)
    assert tight.recomputed == 3
    assert "3 of 3 texts do not fit" in tight.describe(TEXTS)
    assert "do not fit" not in whole.describe(TEXTS)


def test_cached_and_computed_texts_mix_in_one_batch(settings, tmp_path):
    part = reader(settings, tmp_path / "part")
    part.fill(TEXTS[1:2])
    whole = reader(settings, tmp_path / "whole")
    whole.fill(TEXTS)
    assert torch.allclose(part.batch(TEXTS)[1], whole.batch(TEXTS)[1], atol=1e-3)
    assert part.recomputed == 2


def test_damaged_block_is_computed_again(settings, tmp_path):
    reader(settings, tmp_path).fill(TEXTS)
    (block,) = tmp_path.glob("block-*")
    block.write_bytes(block.read_bytes()[:30])
    again = reader(settings, tmp_path)
    assert text_key(TEXTS[0]) not in again.cache
    assert again.fill(TEXTS) == 0


def test_layer_that_is_not_there(settings, tmp_path):
    with pytest.raises(BackboneError, match="It has layers 0 to 1"):
        reader(settings, tmp_path, layer=5)
