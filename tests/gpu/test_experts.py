"""The experts' training on a GPU: the same code in bfloat16, with and without recomputation."""

import numpy as np
import pytest
import torch

from penchant.backbone.config import BackboneSettings
from penchant.backbone.loading import load_backbone
from penchant.backbone.reading import TextReader, trainable_part
from penchant.reward.config import ExpertSettings, HeadSettings
from penchant.reward.expert_training import ExpertData, ExpertTrainer
from penchant.reward.experts import ExpertModel, add_experts, add_lora
from penchant.reward.heads import make_head
from penchant.reward.training import UserTable

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
SETTINGS = ExpertSettings(num_experts=3, r=2, gate_hidden=8, layers=None, steps=4, prompts_per_step=4, base_dropout=False)


def train(planted, tiny_backbone, device, *, checkpointing=False, precision=None):
    dataset, _ = planted
    rows = dataset.select(split="train", cohort="seen")
    texts = [(dataset.prompts[at], text) for at, text in zip(dataset.prompt_of_response, dataset.responses, strict=True)]
    embedding = torch.nn.functional.normalize(torch.randn(60, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    backbone = BackboneSettings(name=tiny_backbone, max_tokens=64)
    whole, tokenizer = load_backbone(backbone, device)
    torch.manual_seed(0)
    base, width = trainable_part(whole, None, dropout=False), 2 * 32 + 16
    heads = {dim: make_head(HeadSettings(hidden=8, dropout=0.0), feature_dim=width, user_dim=dim) for dim in (0, 6)}
    models = {
        "uniform": ExpertModel(add_lora(base, SETTINGS), heads[0], backbone),
        "personalised": ExpertModel(add_experts(base, SETTINGS, user_dim=6), heads[6], backbone),
    }
    for model in models.values():
        model.to(device).precision = precision
        if checkpointing:
            model.checkpoint_gradients()
    data = ExpertData(
        texts=texts,
        chosen=rows.chosen,
        rejected=rows.rejected,
        prompt=dataset.prompt_of_response[rows.chosen],
        valid=np.arange(len(rows)) % 5 == 0,
        users={"uniform": None, "personalised": UserTable(embedding, rows.user)},
    )
    trainer = ExpertTrainer(SETTINGS, data, models, TextReader(tokenizer, backbone, device=device), device=device)
    return [trainer.step() for _ in range(SETTINGS.steps)]


def close(one, other, tolerance):
    return all(abs(a[name] - b[name]) < tolerance for a, b in zip(one, other, strict=True) for name in a)


def test_a_gpu_trains_as_the_cpu_does(planted, tiny_backbone):
    assert close(train(planted, tiny_backbone, "cuda"), train(planted, tiny_backbone, "cpu"), 1e-3)


def test_bfloat16_is_near_float32(planted, tiny_backbone):
    assert close(train(planted, tiny_backbone, "cuda", precision=torch.bfloat16), train(planted, tiny_backbone, "cuda"), 3e-2)


def test_recomputation_changes_nothing(planted, tiny_backbone):
    assert close(train(planted, tiny_backbone, "cuda", checkpointing=True), train(planted, tiny_backbone, "cuda"), 1e-3)
