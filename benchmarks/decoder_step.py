"""Training steps of the experts on a randomly initialised decoder: tokens a second, share of the machine's peak, memory.

    python benchmarks/decoder_step.py                        # tiny, wherever it runs
    python benchmarks/decoder_step.py --shape 8b --peak 989  # on a GPU; --peak: its data sheet's dense bfloat16 TFLOP/s

Forward and backward through the base with MoLE at every linear map, plain LoRA of the same active rank beside it as the peer,
with and without recomputation. The loss is the mean square of the last hidden states, in place of the reward loss: the passes
through the base are the same. Operations are counted as 4 a parameter and token (6 less the frozen weights' gradients), and
2 more with recomputation not counted, so that the share of the peak is of useful work. The share is of what the machine's best
large matrix product does in the same run, and of the data sheet's figure where one is given.
"""

import argparse
import statistics

import torch
from _device import add_device, device_name, forget_peak, peak_bytes, timed, training_precision
from _peaks import matmul_rate
from _report import report
from _shapes import DECODERS, decoder, parameters_of_layers, random_tokens
from peft import LoraConfig, get_peft_model

from penchant.reward.mole import MoleConfig

RANK, USER_DIM = 8, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=DECODERS, default="tiny")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--peak", type=float, help="The device's dense bfloat16 TFLOP/s.")
    add_device(parser)
    arguments = parser.parse_args()
    precision = training_precision(arguments.device)
    reachable = matmul_rate(arguments.device, precision) / 1e12
    rows = []
    for checkpointing in (False, True):
        for name in ("LoRA", "MoLE"):
            rows.append(measure(name, checkpointing, arguments, precision, reachable))
            if arguments.device == "cuda":
                torch.cuda.empty_cache()
    title = f"Experts on a {arguments.shape} decoder, {arguments.sequences} x {arguments.tokens} tokens"
    title += f", {device_name(arguments.device)}, {str(precision).removeprefix('torch.')}"
    notes = [f"A large matrix product: {reachable:,.3g} TFLOP/s in this run."]
    report(f"decoder_step_{arguments.shape}", title, rows, notes)


def measure(name: str, checkpointing: bool, arguments: argparse.Namespace, precision: torch.dtype, reachable: float) -> dict:
    device = arguments.device
    base = decoder(arguments.shape, device, precision)
    count = parameters_of_layers(base)
    if name == "LoRA":
        model = get_peft_model(base, LoraConfig(r=2 * RANK, target_modules="all-linear"))
    else:
        model = get_peft_model(base, MoleConfig(r=RANK, target_modules="all-linear", user_dim=USER_DIM))
    model.to(device).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = random_tokens(arguments.sequences, arguments.tokens, device)
    if name == "MoLE":
        users = torch.randn(arguments.sequences, USER_DIM, device=device)
        inputs["user_embedding"] = torch.nn.functional.normalize(users, dim=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    forget_peak(device)

    def step() -> None:
        model(**inputs).last_hidden_state.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = statistics.median([timed(step, device) for _ in range(arguments.steps + 2)][2:])
    processed = arguments.sequences * arguments.tokens
    done = 4 * count * processed / seconds / 1e12
    return {
        "method": name + (", recomputed" if checkpointing else ""),
        "parameters, M": count / 1e6,
        "step, s": seconds,
        "tokens/s": processed / seconds,
        "TFLOP/s": done,
        "of a matrix product": f"{done / reachable:.1%}",
        "of the data sheet": f"{done / arguments.peak:.1%}" if arguments.peak else "-",
        "memory, GiB": peak_bytes(device) / 2**30 if device == "cuda" else "-",
    }


if __name__ == "__main__":
    main()
