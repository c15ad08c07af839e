"""Rows a second by how many users are in memory: 5, 100, 1,000 and 2,000, of whom a batch's rows are drawn.

    python benchmarks/many_users.py                 # an encoder of MiniLM's shape on the CPU
    python benchmarks/many_users.py --base 8b       # on a GPU

64 rows of 128 tokens, random weights. Ours: LoRA of rank 8 on query and value for each user, stacked in as many slots; and 8
experts, of which a user's embedding chooses one, so that users are rows of a table. Every call draws 64 of the users, none twice
where there are so many. The peers in the same run: PEFT's mixed batch
(`adapter_names=`), up to as many adapters as `--peft` says, since each is a module a layer there; and the base alone, which mixes
nothing. The last column is the median of the rounds' own ratios.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from _device import add_device, device_name, seconds_in_turn, training_precision
from _report import report
from _shapes import DECODERS, decoder, minilm, random_tokens
from peft import LoraConfig, PeftModel, get_peft_model

from penchant.backbone.grouped import GroupedModel
from penchant.backbone.reading import share_weights
from penchant.reward.mole import MoleConfig

USERS, ROWS, RANK, USER_DIM = (5, 100, 1_000, 2_000), 64, 8, 64


class Ways:
    """The same base, called for users who are drawn anew each time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = options.device
        self.random = np.random.default_rng(0)
        precision = training_precision(self.device)
        targets = ["query", "value"] if options.base == "minilm" else ["q_proj", "v_proj"]
        config = LoraConfig(r=RANK, target_modules=targets)
        base = minilm(self.device, precision) if options.base == "minilm" else decoder(options.base, self.device, precision)
        self.alone = base.requires_grad_(False).eval()
        self.grouped = {users: self.stacked(users, config) for users in options.users}
        self.experts = get_peft_model(share_weights(base), MoleConfig(r=RANK, target_modules=targets, user_dim=USER_DIM)).eval()
        everyone = torch.randn(max(options.users), USER_DIM, device=self.device)
        self.user_UD = torch.nn.functional.normalize(everyone, dim=1)
        self.peft = {users: self.mixed(base, users, config) for users in options.users if users <= options.peft}
        self.inputs = random_tokens(ROWS, options.tokens, self.device)

    def stacked(self, users: int, config: LoraConfig) -> GroupedModel:
        model = GroupedModel(self.alone, config, slots=users)
        for parameter in model.stacked.values():
            torch.nn.init.normal_(parameter, std=0.02)
        return model

    def mixed(self, base: torch.nn.Module, users: int, config: LoraConfig) -> PeftModel:
        model = get_peft_model(share_weights(base), config, adapter_name="0")
        for number in range(1, users):
            model.add_adapter(str(number), config)
        return model.eval()

    def draw(self, users: int) -> torch.Tensor:
        return torch.from_numpy(self.random.permutation(np.resize(self.random.permutation(users), ROWS))).to(self.device)

    def calls(self, users: int) -> dict[str, Callable[[], object]]:
        found: dict[str, Callable[[], object]] = {
            "grouped adapters": lambda: self.grouped[users](self.draw(users), **self.inputs),
            "MoLE, 8 experts": lambda: self.experts(**self.inputs, user_embedding=self.user_UD[self.draw(users)]),
        }
        if users in self.peft:
            found["PEFT, mixed batch"] = lambda: self.peft[users](
                **self.inputs, adapter_names=list(map(str, self.draw(users).tolist()))
            )
        return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=("minilm", *DECODERS), default="minilm")
    parser.add_argument("--users", type=int, nargs="+", default=USERS)
    parser.add_argument("--peft", type=int, default=100, help="adapters in PEFT's model at most")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11)
    add_device(parser)
    options = parser.parse_args()
    ways = Ways(options)
    calls = {(name, users): call for users in options.users for name, call in ways.calls(users).items()}
    named = {f"{name}|{users}": call for (name, users), call in calls.items()}
    seconds = seconds_in_turn({"base": lambda: ways.alone(**ways.inputs)} | named, options.device, options.rounds)
    rows = [
        {"way": "base alone", "users": 0, "rows/s": ROWS / statistics.median(seconds["base"]), "against the fewest users": 1.0}
    ]
    fewest = min(options.users)
    for name, users in sorted(calls):
        own, first = seconds[f"{name}|{users}"], seconds[f"{name}|{fewest}"]
        ratio = statistics.median(a / b for a, b in zip(first, own, strict=True))
        rows.append({"way": name, "users": users, "rows/s": ROWS / statistics.median(own), "against the fewest users": ratio})
    title = f"{ROWS} rows of {options.tokens} tokens, a base of {options.base}'s shape, {device_name(options.device)}"
    report(f"many_users_{options.base}", title, rows)


if __name__ == "__main__":
    main()
