"""Candidates scored in a second for one user: a pass of a large base for each, or the embedding path.

    python benchmarks/candidates.py               # a tiny base, wherever it runs
    python benchmarks/candidates.py --shape 8b    # on a GPU

64 candidates of 256 tokens, prompt included; random weights. The pass: a decoder with MoLE at every linear map and a head on its
last token; the peers are the same base alone and with PEFT's LoRA of the same active rank. The embedding path: an encoder of
MiniLM's shape, whose mean and first token go through the two-term head with the user; and the head alone, where a candidate's
features are known, as they are for whoever asks second. From token ids to scores; the ways take turns within one run, and the
figures are medians.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from _device import add_device, device_name, seconds_in_turn, training_precision
from _report import report
from _shapes import DECODERS, decoder, minilm, random_tokens
from peft import LoraConfig, get_peft_model
from torch import Tensor

from penchant.backbone.pooling import pool
from penchant.backbone.reading import share_weights
from penchant.reward.config import HeadSettings
from penchant.reward.heads import make_head
from penchant.reward.mole import MoleConfig

RANK, USER_DIM = 8, 64
POOLING = ("mean", "first")


def passes(shape: str, inputs: dict[str, Tensor], user_1D: Tensor, device: str, precision: torch.dtype) -> dict[str, Callable]:
    """The base alone, with LoRA, and with experts, over the same weights."""
    index = torch.zeros(len(inputs["input_ids"]), dtype=torch.long, device=device)  # all candidates are for one user
    alone = decoder(shape, device, precision, scores=True).eval()
    where = {"target_modules": "all-linear", "exclude_modules": ["score"]}
    lora = get_peft_model(share_weights(alone), LoraConfig(r=2 * RANK, **where)).eval()
    experts = get_peft_model(share_weights(alone), MoleConfig(r=RANK, user_dim=USER_DIM, **where)).eval()
    return {
        f"a pass of the {shape} base alone": lambda: alone(**inputs).logits,
        f"a pass of the {shape} base, LoRA": lambda: lora(**inputs).logits,
        f"a pass of the {shape} base, MoLE": lambda: experts(**inputs, user_embedding=user_1D, user_index=index).logits,
    }


def embedding_path(inputs: dict[str, Tensor], user_1D: Tensor, device: str, precision: torch.dtype) -> dict[str, Callable]:
    """From tokens through the encoder to scores, and from known features."""
    encoder = minilm(device, precision).eval()
    head = make_head(HeadSettings(), feature_dim=2 * encoder.config.hidden_size, user_dim=USER_DIM).to(device).eval()

    def features() -> Tensor:
        return pool(encoder(**inputs).last_hidden_state, inputs["attention_mask"], POOLING).float()

    known = features()
    return {
        "the embedding path: MiniLM's shape and the head": lambda: head(features(), user_1D),
        "the embedding path, features known": lambda: head(known, user_1D),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=DECODERS, default="tiny")
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    add_device(parser)
    options = parser.parse_args()
    device, precision = options.device, training_precision(options.device)
    inputs = random_tokens(options.candidates, options.tokens, device)
    user_1D = torch.nn.functional.normalize(torch.randn(1, USER_DIM, device=device), dim=1)
    calls = passes(options.shape, inputs, user_1D, device, precision) | embedding_path(inputs, user_1D, device, precision)
    for call in calls.values():
        assert call().numel() == options.candidates
    seconds = seconds_in_turn(calls, device, options.rounds)
    base = next(iter(calls))
    rows = [
        {
            "way": name,
            "ms a batch": 1e3 * statistics.median(times),
            "candidates/s": options.candidates / statistics.median(times),
            "against the base alone": statistics.median(a / b for a, b in zip(seconds[base], times, strict=True)),
        }
        for name, times in seconds.items()
    ]
    title = f"{options.candidates} candidates of {options.tokens} tokens for one user, {device_name(device)}"
    report(f"candidates_{options.shape}", f"{title}, {str(precision).removeprefix('torch.')}", rows)


if __name__ == "__main__":
    main()
