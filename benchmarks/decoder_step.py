"""Training steps of the experts on a randomly initialised decoder: tokens a second, share of the machine's peak, memory.

    python benchmarks/decoder_step.py                        # tiny, wherever it runs
    python benchmarks/decoder_step.py --shape 1b --peak 989  # on a GPU; --peak: its dense bfloat16 TFLOP/s

Forward and backward through the base with MoLE at every linear map, plain LoRA of the same active rank beside it as the peer,
with and without recomputation. Operations are counted as 4 a parameter and token (6 less the frozen weights' gradients), and
2 more with recomputation not counted, so that the share of the peak is of useful work.
"""

import argparse
import time

import torch
from _report import report
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaModel

from penchant.reward.mole import MoleConfig

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "2b": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 20, "num_attention_heads": 32},
}
RANK, USER_DIM = 8, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--peak", type=float, help="The device's dense bfloat16 TFLOP/s.")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = torch.bfloat16 if device == "cuda" else torch.float32
    rows = []
    for checkpointing in (False, True):
        for name in ("LoRA", "MoLE"):
            rows.append(measure(name, checkpointing, arguments, device, precision))
    report("decoder_step", f"Experts on a {arguments.shape} decoder, {device}, {str(precision).removeprefix('torch.')}", rows)


def measure(name, checkpointing, arguments, device, precision) -> dict:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    with torch.device(device):
        base = LlamaModel(LlamaConfig(vocab_size=32_000, **SHAPES[arguments.shape])).to(precision)
    count = sum(parameter.numel() for name, parameter in base.named_parameters() if "embed" not in name)
    if name == "LoRA":
        model = get_peft_model(base, LoraConfig(r=2 * RANK, target_modules="all-linear"))
    else:
        model = get_peft_model(base, MoleConfig(r=RANK, target_modules="all-linear", user_dim=USER_DIM))
    model.to(device).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    shape = (arguments.sequences, arguments.tokens)
    tokens = {"input_ids": torch.randint(32_000, shape, device=device), "attention_mask": torch.ones(shape, device=device)}
    users = torch.nn.functional.normalize(torch.randn(arguments.sequences, USER_DIM, device=device), dim=1)
    extra = {} if name == "LoRA" else {"user_embedding": users}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for number in range(arguments.steps + 2):
        started = time.perf_counter()
        model(**tokens, **extra).last_hidden_state.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - started)
    step = sorted(seconds)[len(seconds) // 2]
    processed = arguments.sequences * arguments.tokens
    row = {
        "method": name + (", recomputed" if checkpointing else ""),
        "parameters, M": count / 1e6,
        "step, s": step,
        "tokens/s": processed / step,
        "TFLOP/s": 4 * count * processed / step / 1e12,
    }
    row["of the peak"] = f"{row['TFLOP/s'] / arguments.peak:.1%}" if arguments.peak else "-"
    row["memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else "-"
    return row


if __name__ == "__main__":
    main()
