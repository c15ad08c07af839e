"""A training step with experts, against PEFT's plain LoRA, X-LoRA and Poly, and against the authors' dispatcher.

    python benchmarks/mole_step.py

32 sequences of 32 users through a MiniLM-shaped encoder (6 layers, 384 wide, random weights), q and v adapted; forward and
backward. The methods take turns within one run, and the figures are medians.

A sequence goes through low-rank maps of rank 16 at each layer under every method but top-2 (24); that the models have so many
parameters is checked. MoLE: an expert of rank 8 for all, and one of 8. The dispatcher: the same with a gate a layer, and it has
to give what ours gives. X-LoRA (arXiv 2402.07148): the best of 8 adapters of rank 16 for each token, trained too; it knows no
user, asks a pass of the base without adapters which to take, and computes all 8. Poly (arXiv 2202.13914): the mean, weighed by
user, of 8 adapters of rank 16; every user has trained logits a layer in place of an embedding, so it has nothing for a new one.
"""

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _device import add_device, seconds_in_turn
from _dispatcher import DispatchedLayer, DispatchedModel
from _report import report
from peft import LoraConfig, PolyConfig, XLoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.poly.layer import PolyLayer
from torch import nn
from transformers import BertConfig, BertModel

from penchant.reward.mole import MoleConfig
from penchant.reward.mole.layer import MoleLayer

RANK, EXPERTS, USER_DIM = 8, 8, 64
TARGETS = ["query", "value"]


def base() -> BertModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertModel(BertConfig(vocab_size=1000, **shape))


def experts(**options) -> nn.Module:
    options = {"num_experts": EXPERTS} | options
    return get_peft_model(base(), MoleConfig(r=RANK, target_modules=TARGETS, user_dim=USER_DIM, **options))


def dispatcher(ours: nn.Module, users: torch.Tensor, tokens: dict[str, torch.Tensor]) -> DispatchedModel:
    """The authors' way over the weights of ours, whose B are random here; both give the same, or this ends."""
    for name, parameter in ours.named_parameters():
        if "_B." in name:
            nn.init.normal_(parameter, std=0.02)
    theirs = DispatchedModel(copy.deepcopy(ours))
    with torch.no_grad():
        pair = [model.eval()(**tokens, user_embedding=users).last_hidden_state for model in (ours, theirs)]
    torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-4)
    return theirs


class UnderModel(nn.Module):
    """The base under the name `model`, as a causal LM has it: X-LoRA finds no adapter's layers elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.model = base()
        self.config = self.model.config
        self.config.use_cache = False  # X-LoRA insists

    def forward(self, **inputs):
        return self.model(**inputs)


def x_lora() -> nn.Module:
    """PEFT takes the adapters from disk."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        places = {str(number): str(Path(folder, str(number))) for number in range(EXPERTS)}
        for number, place in enumerate(places.values()):
            wrapped = UnderModel()
            torch.manual_seed(number)  # each adapter starts from another A
            get_peft_model(wrapped, LoraConfig(r=2 * RANK, target_modules=TARGETS)).save_pretrained(place)
        config = XLoraConfig(hidden_size=384, adapters=places, use_trainable_adapters=True, top_k_lora=1)
        return get_peft_model(UnderModel(), config)


def low_rank_parameters(model: nn.Module) -> int:
    """Parameters of the low-rank maps that one sequence goes through."""
    count = 0
    for module in model.modules():
        if isinstance(module, MoleLayer):
            config = module.mole_config["default"]
            stacked = module.mole_A["default"].numel() + module.mole_B["default"].numel()
            shared = module.mole_shared_A["default"].numel() + module.mole_shared_B["default"].numel()
            count += stacked * config.top_k // config.num_experts + shared
        elif isinstance(module, DispatchedLayer):
            count += sum(p.numel() for part in (module.experts[: module.top_k], module.shared) for p in part.parameters())
        elif isinstance(module, PolyLayer):  # its adapters are mixed into one before the sequence meets them
            count += (module.poly_lora_A["default"].numel() + module.poly_lora_B["default"].numel()) // EXPERTS
        elif isinstance(module, LoraLayer):  # X-LoRA's output is that of the best one
            name = module.active_adapters[0]
            count += module.lora_A[name].weight.numel() + module.lora_B[name].weight.numel()
    return count


def step(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
    def run() -> None:
        model(**inputs).last_hidden_state.square().mean().backward()
        model.zero_grad()

    return run


def main() -> None:

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    add_device(parser)
    options = parser.parse_args()
    shape = options.sequences, options.tokens
    tokens = {"input_ids": torch.randint(1000, shape), "attention_mask": torch.ones(shape, dtype=torch.long)}
    users = torch.nn.functional.normalize(torch.randn(options.sequences, USER_DIM), dim=1)
    of_user, of_task = {"user_embedding": users}, {"task_ids": torch.arange(options.sequences)}
    published = experts(gate_weight="softmax", gate_scope="layer")
    poly = PolyConfig(r=2 * RANK, target_modules=TARGETS, n_tasks=options.sequences, n_skills=EXPERTS)
    lora = f"LoRA, rank {2 * RANK}"
    models: dict[str, tuple[nn.Module, dict]] = {
        lora: (get_peft_model(base(), LoraConfig(r=2 * RANK, target_modules=TARGETS)), {}),
        "MoLE, 8 experts, top-1": (experts(), of_user),
        "MoLE, 8 experts, top-1, softmax, a gate a layer": (published, of_user),
        "the same by the authors' dispatcher": (dispatcher(published, users, tokens), of_user),
        "MoLE, 32 experts, top-1": (experts(num_experts=32), of_user),
        "MoLE, 8 experts, top-2": (experts(top_k=2), of_user),
        "X-LoRA, 8 adapters, top-1": (x_lora(), {}),
        "Poly, 8 adapters": (get_peft_model(base(), poly).base_model, of_task),  # PEFT's wrapper would drop the tasks
    }
    active = {name: low_rank_parameters(model) for name, (model, _) in models.items()}
    for name, count in active.items():
        assert count == active[lora] * (1.5 if "top-2" in name else 1), f"{name} has {count} low-rank parameters a sequence"
    calls = {}
    for name, (model, extra) in models.items():
        model.to(options.device).train()
        inputs = {key: value.to(options.device) for key, value in (tokens | extra).items()}
        model(**inputs).last_hidden_state.square().mean().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad), f"{name} trains less than it says"
        model.zero_grad()
        calls[name] = step(model, inputs)
    seconds = seconds_in_turn(calls, options.device, options.rounds)
    rows = [
        {
            "method": name,
            "step, s, median": float(np.median(times)),
            "against LoRA, median of the rounds": float(np.median(np.array(times) / np.array(seconds[lora]))),
            "low-rank parameters a sequence": active[name],
            "trained parameters": sum(p.numel() for p in models[name][0].parameters() if p.requires_grad),
        }
        for name, times in seconds.items()
    ]
    report("mole_step", f"A step of {options.sequences} users x {options.tokens} tokens, MiniLM's shape", rows)


if __name__ == "__main__":
    main()
