"""64 rows of 64 distinct users against 64 rows of one user, and against PEFT's mixed batch of 64 adapters.

    python benchmarks/mixed_users.py

64 texts of 48 tokens that nobody has asked for before, from strings to scores, under experts over MiniLM (its own weights; the
experts' are random, since speed does not depend on them): all for one user, and for 64 of 2,000 users. Users who share a route
differ in the head alone, so beside the default, one expert for all, stand 8 experts, and the paper's gates, under which every
user's route is their own. The peers have the same base, layers, modules and head, and LoRA of the rank that one user's experts
have together: 64 users' adapters in one batch (`adapter_names=`), and one adapter for all rows, which mixes nothing. All take
turns within one run, on other texts and users every round. Figures are medians, ratios medians of the rounds' own.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from _report import report
from torch import Tensor

from penchant.backbone.activations import ActivationReader
from penchant.backbone.config import BackboneSettings
from penchant.backbone.loading import load_backbone
from penchant.backbone.pooling import pool
from penchant.backbone.reading import TextReader, lowest_layer, trainable_part
from penchant.backbone.surface import SURFACE_NAMES
from penchant.backbone.tokens import Text
from penchant.reward.config import ExpertSettings, HeadSettings
from penchant.reward.experts import ExpertModel, add_experts, add_lora, start_gates_as_clusters
from penchant.reward.heads import make_head
from penchant.scoring.tables import ExpertTable

USERS, DIM, ROWS, TOKENS, ROUNDS = 2_000, 64, 64, 48, 21
PAPER = {
    "num_experts": 8, "layers": None, "target_modules": ("query", "value"), "gate_weight": "softmax", "gate_scope": "layer",
    "gate_init": "random",
}  # fmt: skip
"""`recipes/copl-paper.yaml`."""
SETTINGS = {
    "the default: 1 expert": ExpertSettings(),
    "8 experts, top-1": ExpertSettings(num_experts=8),
    "the paper's gates: 8, top-1": ExpertSettings(**PAPER),
    "the paper's gates: all 8 weighed": ExpertSettings(**PAPER, top_k=8),
}
WORDS = ["tide", "moon", "river", "stone", "light", "paper", "green", "house", "winter", "bread", "music", "garden", "window"]


class Ways:
    """Experts and their peers, over one base: from texts, and the users who ask for them, to scores."""

    def __init__(self, settings: ExpertSettings) -> None:
        torch.manual_seed(0)
        self.backbone = BackboneSettings()
        whole, tokenizer = load_backbone(self.backbone)
        lowest = lowest_layer(whole, settings.layers)
        # Fresh texts: what enters the lowest adapted layer is computed too, and kept nowhere.
        lower = ActivationReader(whole, tokenizer, self.backbone, lowest, None) if lowest else None
        self.reader = TextReader(tokenizer, self.backbone, lower)
        base = trainable_part(whole, settings.layers, dropout=False)
        feature_dim = len(self.backbone.pooling) * whole.config.hidden_size + len(SURFACE_NAMES)
        self.head = make_head(HeadSettings(), feature_dim=feature_dim, user_dim=DIM).eval()
        self.user_UD = torch.nn.functional.normalize(torch.randn(USERS, DIM), dim=1)
        self.experts = ExpertModel(add_experts(base, settings, user_dim=DIM), self.head, self.backbone).eval()
        if settings.gate_init == "clusters":
            start_gates_as_clusters(self.experts, self.user_UD[: settings.num_experts])
        self.peer = add_lora(base, settings).eval()
        for row in range(1, ROWS):
            self.peer.add_adapter(f"user-{row}", self.peer.peft_config["default"])
        self.names = ["default", *(f"user-{row}" for row in range(1, ROWS))]

    def ours(self, texts: list[Text], user_N: Tensor) -> Tensor:
        """As a bundle with experts scores what it does not remember."""
        return ExpertTable(self.experts, self.reader, texts).score(np.arange(len(texts)), self.user_UD[user_N])

    @torch.no_grad()
    def theirs(self, texts: list[Text], user_N: Tensor, *, mixed: bool) -> Tensor:
        """PEFT's LoRA: a row each for 64 adapters, or one adapter for all rows."""
        batch = self.reader.read(texts)
        hidden = self.peer(**batch.inputs(), **({"adapter_names": self.names} if mixed else {})).last_hidden_state
        features = torch.cat([pool(hidden, batch.tokens["attention_mask"], self.backbone.pooling), batch.surface], dim=1)
        return self.head(features, self.user_UD[user_N])


def fresh_texts(random: np.random.Generator) -> list[Text]:
    """Texts of 48 tokens: each word is one, and three stand around prompt and response."""
    words = random.choice(WORDS, (ROWS, TOKENS - 3))
    return [(" ".join(row[:8]), " ".join(row[8:])) for row in words]


def measure(settings: ExpertSettings) -> dict[str, np.ndarray]:
    """Seconds of every round, by way."""
    ways, random = Ways(settings), np.random.default_rng(0)
    methods: dict[str, Callable[[list[Text], Tensor], Tensor]] = {
        "64 users": ways.ours,
        "one user": lambda texts, user_N: ways.ours(texts, user_N[:1].expand(ROWS)),
        "PEFT, 64 adapters": lambda texts, user_N: ways.theirs(texts, user_N, mixed=True),
        "PEFT, one adapter": lambda texts, user_N: ways.theirs(texts, user_N, mixed=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(-2, ROUNDS):
        texts, user_N = fresh_texts(random), torch.from_numpy(random.permutation(USERS)[:ROWS])
        scores = {}
        for name in sorted(methods, reverse=bool(number % 2)):  # neither of a pair always comes first
            started = time.perf_counter()
            scores[name] = methods[name](texts, user_N)
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
        assert (ways.reader.read(texts).lengths() == TOKENS).all()
        assert torch.allclose(scores["64 users"][0], scores["one user"][0], atol=1e-4), "a score depends on who else is asked for"
    return {name: np.array(times) for name, times in seconds.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    for name, settings in SETTINGS.items():
        seconds = measure(settings)
        mixed = seconds["64 users"]
        ratio = np.quantile(seconds["one user"] / mixed, (0.25, 0.5, 0.75))
        rows.append(
            {
                "experts": name,
                **{f"{way}, rows/s": float(ROWS / np.median(times)) for way, times in seconds.items()},
                "64 users / one (quartiles)": f"{ratio[1]:.3f} ({ratio[0]:.3f} to {ratio[2]:.3f})",
                "x PEFT's 64": float(np.median(seconds["PEFT, 64 adapters"] / mixed)),
                "x PEFT's one": float(np.median(seconds["PEFT, one adapter"] / mixed)),
            }
        )
    report("mixed_users", f"{ROWS} fresh texts of {TOKENS} tokens for {ROWS} of {USERS:,} users, MiniLM", rows)


if __name__ == "__main__":
    main()
