"""A training step with experts, against PEFT's plain LoRA of the same active rank.

    python benchmarks/mole_step.py

32 sequences of 32 users through a MiniLM-shaped encoder (6 layers, 384 wide, random weights), q and v adapted; forward and
backward. The methods take turns within one run, and the figures are medians.
"""

import time

import numpy as np
import torch
from _report import report
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertModel

from penchant.reward.mole import MoleConfig

SEQUENCES, TOKENS, RANK, ROUNDS = 32, 64, 8, 15
TARGETS = ["query", "value"]


def base() -> BertModel:
    torch.manual_seed(0)
    return BertModel(
        BertConfig(vocab_size=1000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    )


def main() -> None:
    experts = {"r": RANK, "target_modules": TARGETS, "user_dim": 64}
    models = {
        f"LoRA, rank {2 * RANK}": get_peft_model(base(), LoraConfig(r=2 * RANK, target_modules=TARGETS)),
        "MoLE, 8 experts, top-1": get_peft_model(base(), MoleConfig(**experts)),
        "MoLE, 8 experts, top-1, softmax, a gate a layer": get_peft_model(
            base(), MoleConfig(**experts, gate_weight="softmax", gate_scope="layer")
        ),
        "MoLE, 32 experts, top-1": get_peft_model(base(), MoleConfig(**experts, num_experts=32)),
        "MoLE, 8 experts, top-2": get_peft_model(base(), MoleConfig(**experts, top_k=2)),
    }
    tokens = {
        "input_ids": torch.randint(1000, (SEQUENCES, TOKENS)),
        "attention_mask": torch.ones(SEQUENCES, TOKENS, dtype=torch.long),
    }
    users = torch.nn.functional.normalize(torch.randn(SEQUENCES, 64), dim=1)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(ROUNDS + 2):
        for name, model in models.items():
            extra = {} if name.startswith("LoRA") else {"user_embedding": users}
            started = time.perf_counter()
            model(**tokens, **extra).last_hidden_state.square().mean().backward()
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
            model.zero_grad()
    plain = next(iter(seconds.values()))
    rows = [
        {
            "method": name,
            "step, s, median": float(np.median(times)),
            "against LoRA, median of the rounds": float(np.median(np.array(times) / np.array(plain))),
            "trained parameters": sum(p.numel() for p in models[name].parameters() if p.requires_grad),
        }
        for name, times in seconds.items()
    ]
    report("mole_step", f"A step of {SEQUENCES} users x {TOKENS} tokens, MiniLM's shape", rows)


if __name__ == "__main__":
    main()
