"""Random (user, text) pairs scored in a second by the frozen phase, look-ups included, against the plain ways.

    python benchmarks/frozen_scores.py

One core. A bundle of 10,000 users with heads of random weights (speed does not depend on them), and 20,000 texts as long as those
of alpaca-p4 (a prompt of 94 characters, a response of 426), whose features are known. The clock runs from ids and strings, as a
service gets them, to Python numbers: user id -> embedding, text -> key -> row, the user's score and the uniform one. All users
and texts have been asked for before; every round draws other pairs of them, in fresh strings. The ways take turns within one run,
and the figures are medians.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _report import report

from penchant.backbone.cache import text_key
from penchant.backbone.config import BackboneSettings
from penchant.backbone.surface import SURFACE_NAMES
from penchant.graph.config import EncoderSettings
from penchant.graph.encoder import GraphEncoder
from penchant.graph.neighbours import NeighbourIndex
from penchant.reward.config import HeadSettings
from penchant.reward.heads import make_head
from penchant.runtime.serving.engine import Knowledge, ScoreRequest, ScoringEngine
from penchant.scoring.bundle import BundleParts, write_bundle
from penchant.scoring.config import OnboardingSettings
from penchant.scoring.model import Asking, PersonalisedRewardModel
from penchant.scoring.questions import QuestionPool

USERS, PROMPTS, RESPONSES, ROUNDS = 10_000, 1_250, 16, 41
FEATURES, DIM = 768 + len(SURFACE_NAMES), 64
FLAT, SINGLE = 4_096, 64
"""Pairs in a batch without order, and in a round of the way that makes a call for each."""

Pairs = tuple[list[str], list[str], list[list[str]]]
"""Users, and for each a prompt and responses to it."""


def build(folder: Path, random: np.random.Generator) -> PersonalisedRewardModel:
    """A bundle in a folder, loaded, with every text remembered. The base model is never needed."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz      "))
    words = lambda length: "".join(random.choice(letters, length))  # noqa: E731
    texts = [(prompt, words(426)) for prompt in (words(94) for _ in range(PROMPTS)) for _ in range(RESPONSES)]
    user_UD = torch.nn.functional.normalize(torch.from_numpy(random.normal(size=(USERS, DIM)).astype(np.float32)), dim=1)
    encoder = EncoderSettings(num_layers=1, dim=DIM)
    heads = {dim: make_head(HeadSettings(), feature_dim=FEATURES, user_dim=dim) for dim in (0, DIM)}
    feature_RF = torch.from_numpy(random.normal(size=(len(texts), FEATURES)).astype(np.float16))
    nobody = np.zeros(0, dtype=np.int64)
    parts = BundleParts(
        backbone=BackboneSettings(),
        encoder=GraphEncoder(encoder, num_users=0, num_responses=0, feature_dim=FEATURES),
        user_ids=np.array([f"user-{number:05d}" for number in range(USERS)], dtype=object),
        user_UD=user_UD,
        response_ids=np.array([str(number) for number in range(len(texts))], dtype=object),
        response_keys=np.array([text_key(text).hex() for text in texts], dtype=object),
        response_layers=torch.zeros(2, len(texts), DIM),
        response_degree=torch.zeros(2, len(texts)),
        neighbours=NeighbourIndex.build(nobody, nobody, user_UD.numpy(), np.zeros((len(texts), DIM), dtype=np.float32)),
        head_settings=HeadSettings(),
        personalised=heads[DIM],
        uniform=heads[0],
        prototype_KD=user_UD[:32],
        questions=QuestionPool(texts, feature_RF),  # `load` remembers the features of the pool's texts
        onboarding=OnboardingSettings(kind="prototypes", temperatures=(0.1,)),
    )
    write_bundle(folder / "bundle", parts, dataset="none", counts={})
    return PersonalisedRewardModel.load(folder / "bundle", remembered_texts=len(texts))


class Ways:
    """From users and texts to lists of the users' scores, in order."""

    def __init__(self, model: PersonalisedRewardModel) -> None:
        self.model, self.engine = model, ScoringEngine(model)
        pool = model.parts.questions
        assert pool is not None
        self.feature = {text_key(text): row for text, row in zip(pool.texts, pool.feature_NF, strict=True)}

    def engine_batch(self, pairs: Pairs) -> list[float]:
        """What a replica of the service does with the requests that came together."""
        requests = [
            ScoreRequest(Knowledge(user, may_be_seen=True), prompt, tuple(responses))
            for user, prompt, responses in zip(*pairs, strict=True)
        ]
        return [score for answer in self.engine.score(requests) for score in answer.score]

    def batch(self, pairs: Pairs) -> list[float]:
        """`score_batch`."""
        model = self.model
        askings = [Asking(model.resolve(user), prompt, texts) for user, prompt, texts in zip(*pairs, strict=True)]
        return [score for scores in model.score_batch(askings) for score in scores.score]

    def flat(self, pairs: Pairs) -> list[float]:
        """`score_texts`."""
        users = [self.model.resolve(user) for user in pairs[0]]
        texts = [(prompt, response) for _, prompt, responses in zip(*pairs, strict=True) for response in responses]
        counts = [len(responses) for responses in pairs[2]]
        score, uniform = self.model.score_texts(users, np.repeat(np.arange(len(users)), counts), texts)
        uniform.tolist()
        return score.tolist()

    def one_by_one(self, pairs: Pairs) -> list[float]:
        """A call a pair."""
        return [
            self.model.score(user, prompt, [response]).score[0]
            for user, prompt, responses in zip(*pairs, strict=True)
            for response in responses
        ]

    @torch.no_grad()
    def heads_over_features(self, pairs: Pairs) -> list[float]:
        """Features kept in memory by text, stacked, and both heads over them."""
        parts = self.model.parts
        texts = [(prompt, response) for _, prompt, responses in zip(*pairs, strict=True) for response in responses]
        users = [user for user, responses in zip(pairs[0], pairs[2], strict=True) for _ in responses]
        feature_NF = torch.stack([self.feature[text_key(text)] for text in texts])
        user_ND = torch.stack([self.model.resolve(user).embedding for user in users])  # type: ignore[misc]
        parts.uniform(feature_NF).tolist()
        return parts.personalised(feature_NF, user_ND).tolist()


def draw(model: PersonalisedRewardModel, askings: int, responses: int, random: np.random.Generator) -> Pairs:
    """Random users, each with random responses to a random prompt, in fresh strings."""
    pool = model.parts.questions
    assert pool is not None
    users = [fresh(model.parts.user_ids[row]) for row in random.integers(USERS, size=askings)]
    prompt_rows = random.integers(PROMPTS, size=askings)
    rows = [prompt * RESPONSES + random.permutation(RESPONSES)[:responses] for prompt in prompt_rows.tolist()]
    prompts = [fresh(pool.texts[own[0]][0]) for own in rows]
    return users, prompts, [[fresh(pool.texts[row][1]) for row in own] for own in rows]


def fresh(text: str) -> str:
    """An equal string whose hash is not known yet."""
    return text.encode().decode()


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        model = build(Path(folder), random)
        ways = Ways(model)
        methods: dict[str, tuple[Callable[[Pairs], list[float]], tuple[int, int]]] = {
            "the service's engine, 64 users x 16 texts": (ways.engine_batch, (64, 16)),
            "score_batch, 64 users x 16 texts": (ways.batch, (64, 16)),
            f"score_batch, {FLAT:,} users x 1 text": (ways.batch, (FLAT, 1)),
            f"score_texts, {FLAT:,} users x 1 text": (ways.flat, (FLAT, 1)),
            "plain: features from memory through both heads, 64 x 16": (ways.heads_over_features, (64, 16)),
            "plain: a call of score a pair": (ways.one_by_one, (SINGLE, 1)),
        }
        ways.flat((["nobody"] * PROMPTS, *every(model)))
        for user in model.parts.user_ids:
            model.resolve(user)
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        for number in range(ROUNDS + 2):
            for name, (way, size) in methods.items():
                pairs = draw(model, *size, random)
                started = time.perf_counter()
                scores = way(pairs)
                elapsed = time.perf_counter() - started
                if number >= 2:
                    seconds[name].append(elapsed / len(scores))
                elif way != ways.heads_over_features:
                    assert np.allclose(scores, ways.heads_over_features(pairs), atol=1e-5)
    once = np.array(seconds["plain: a call of score a pair"])
    heads = np.array(seconds["plain: features from memory through both heads, 64 x 16"])
    rows = [
        {
            "way": name,
            "scores/s, median": int(1 / np.median(times)),
            "scores/s, slowest and fastest tenth": f"{1 / np.quantile(times, 0.9):,.0f} to {1 / np.quantile(times, 0.1):,.0f}",
            "x heads over features": float(np.median(heads / np.array(times))),
            "x a call a pair": float(np.median(once / np.array(times))),
        }
        for name, times in seconds.items()
    ]
    report("frozen_scores", "Random (user, text) pairs, 10,000 users, 20,000 texts, one core", rows)


def every(model: PersonalisedRewardModel) -> tuple[list[str], list[list[str]]]:
    """All prompts, and their responses."""
    pool = model.parts.questions
    assert pool is not None
    prompts = [pool.texts[row][0] for row in range(0, len(pool.texts), RESPONSES)]
    return prompts, [[pool.texts[prompt * RESPONSES + row][1] for row in range(RESPONSES)] for prompt in range(PROMPTS)]


if __name__ == "__main__":
    main()
