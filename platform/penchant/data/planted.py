"""The planted world: users in groups of known taste, so that the right answer and the best reachable accuracy are known.

A response shows a few attributes in its words (in steps, warm, with an example, ...). A group has a weight
for each attribute; a user chooses the response that their group likes better (in a world with individuality: that they
themselves do), and errs with a stated probability.

Shapes: R responses, A attributes, G groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from penchant.artifacts import read_json, write_json
from penchant.config import Settings
from penchant.data.dataset import PreferenceDataset, write_tables

_SUBJECTS = (
    "tides", "volcanoes", "yeast", "compound interest", "the moon's phases", "bicycle gears", "sourdough", "glaciers",
    "vaccines", "solar panels", "earthquakes", "chess openings", "honey bees", "tea", "coral reefs", "jet lag",
    "rainbows", "batteries", "composting", "sleep", "magnets", "public libraries", "migrating birds", "black holes",
    "running shoes", "wool", "lighthouses", "photosynthesis", "subway maps", "olive oil", "thunder", "origami",
    "knots", "mushrooms", "the printing press", "tree rings", "fermentation", "cast iron pans", "time zones", "wind turbines",
)  # fmt: skip
_QUESTIONS = (
    "Explain {} to a friend.",
    "What should I know about {}?",
    "How would you introduce {} in class?",
    "Tell me something useful about {}.",
    "Why do people care about {}?",
    "What surprises most people about {}?",
)
_OPENINGS = (
    "{} can be understood by looking at what goes in and what comes out.",
    "The main thing about {} is that small causes add up.",
    "People have studied {} for a long time, and the basics are settled.",
    "There is more to {} than it seems, but the core is simple.",
)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "steps": (
        "1. Start with the basics.\n2. Look at the details.\n3. Put it together.",
        "First, see what it is. Second, see how it works. Third, try it.",
    ),
    "warm": (
        "You are doing great by asking, my friend, and I am so happy to help!",
        "What a lovely question! Thank you for your curiosity, dear reader.",
    ),
    "example": (
        "For example, imagine a bucket under a tap: it fills slowly, then all at once.",
        "Picture a child on a swing: one push does little, ten pushes do a lot.",
    ),
    "evidence": (
        "According to a 2019 survey, 73% of the measurements agree within 5%.",
        "Researchers measured 1,240 cases and found a correlation of 0.82.",
    ),
    "caution": (
        "However, be careful: experts disagree, there are risks, and you should check with a professional.",
        "Warning: this can be dangerous if done wrong, so never rely on it without advice.",
    ),
    "humour": (
        "Spoiler: my cat understood it before I did, and she only wanted a snack. Ha!",
        "Joke of the day: it walked into a bar and nobody noticed. Funny, right? Lol.",
    ),
}
"""Attribute -> the sentences that show it."""


class PlantedWorld(Settings):
    """Size and nature of a planted world."""

    users: int = Field(800, ge=2)
    """Seen users."""
    unseen_users: int = Field(160, ge=0)
    """Users kept out of training."""
    groups: int = Field(4, ge=1, le=len(ATTRIBUTES))
    """Groups of one taste each."""
    agreement: float = Field(0.5, ge=0.5, le=1)
    """Share of pairs on which two groups agree, on average."""
    individuality: float = Field(0.0, ge=0, le=1)
    """How much of a user's taste is their own and not their group's: with 1 groups mean nothing."""
    prompts: int = Field(240, ge=10, le=len(_SUBJECTS) * len(_QUESTIONS))
    """Prompts; 15% of them, at least one, are for test."""
    responses_per_prompt: int = Field(8, ge=3, le=12)
    """Responses to a prompt."""
    comparisons_per_user: int = Field(20, ge=1)
    """Train comparisons of a user; with protocol `avg`, on average."""
    valid_comparisons: int = Field(3, ge=0)
    """Validation comparisons of a user."""
    test_comparisons: int = Field(16, ge=1)
    """Test comparisons of a user."""
    protocol: Literal["all", "avg"] = "all"
    """`all`: every user has that many comparisons; `avg`: uniform in 1..2n-1 (CoPL's ALL and AVG)."""
    noise: float = Field(0.1, ge=0, lt=0.5)
    """Probability that a user errs: chooses what their group likes less."""
    seed: int = Field(0, ge=0)
    """Fixes everything."""

    @model_validator(mode="after")
    def _check(self) -> PlantedWorld:
        if self.users + self.unseen_users < self.groups:
            raise ValueError("there must be at least one user for each group")
        pairs = self.responses_per_prompt * (self.responses_per_prompt - 1) // 2
        train_pairs = (self.prompts - test_prompt_count(self.prompts)) * pairs
        if 2 * self.comparisons_per_user + self.valid_comparisons > train_pairs // 4 - 1:
            raise ValueError("too many comparisons a user for so few prompts: add prompts or responses_per_prompt")
        return self


@dataclass(frozen=True)
class PlantedTastes:
    """What a world's responses show and how much each group likes that, which is drawn before any user is."""

    prompts: list[str]
    shows_RA: np.ndarray
    """1.0 where a response shows an attribute."""
    weight_GA: np.ndarray
    merit_R: np.ndarray

    @property
    def utility_RG(self) -> np.ndarray:
        """How much each group likes each response."""
        return self.shows_RA @ self.weight_GA.T + self.merit_R[:, None]


@dataclass(frozen=True, kw_only=True)
class PlantedTruth:
    """What is true of a planted world by construction."""

    bayes_accuracy: float
    """Expected accuracy on the test comparisons of whoever knows each user's taste: 1 - noise."""
    uniform_bayes_accuracy: float
    """Expected accuracy of the best predictor that knows how many seen users prefer which response, and not the user."""
    agreement: float
    """Share of pairs on which two groups agree, mean over pairs of groups."""
    weights: list[list[float]]
    """Group -> weight of each attribute."""
    attributes: list[str]


def test_prompt_count(prompts: int) -> int:
    """How many of a world's prompts are for test."""
    return max(1, round(0.15 * prompts))


def tastes(world: PlantedWorld, random: np.random.Generator | None = None) -> PlantedTastes:
    """The tastes of a world; the same world has the same.

    Args:
        random: What they are drawn from; by default what `generate` starts with.
    """
    random = random or np.random.default_rng(world.seed)
    prompts = [
        question.format(subject)
        for question, subject in random.permutation(list(itertools.product(_QUESTIONS, _SUBJECTS)))[: world.prompts]
    ]
    shows = (random.random((world.prompts * world.responses_per_prompt, len(ATTRIBUTES))) < 0.3).astype(np.float64)
    # A tie between two responses would have no right answer: every response has a small merit of its own.
    merit = random.normal(0, 0.05, len(shows))
    return PlantedTastes(prompts, shows, _weights(world, shows, merit, random), merit)


def generate(world: PlantedWorld) -> tuple[PreferenceDataset, PlantedTruth]:
    """A planted data set and its truth; the same world gives the same set."""
    random = np.random.default_rng(world.seed)
    taste = tastes(world, random)
    names, per_prompt = list(ATTRIBUTES), world.responses_per_prompt
    prompts, shows = taste.prompts, taste.shows_RA
    pair, prefers_first = _clear_pairs(world, shows, taste.utility_RG)
    prompt_of_pair = pair[:, 0] // per_prompt
    is_test = prompt_of_pair >= world.prompts - test_prompt_count(world.prompts)

    total = world.users + world.unseen_users
    group = np.concatenate([random.permutation(np.arange(count) % world.groups) for count in (world.users, world.unseen_users)])
    rows, fans_P = [], np.zeros(len(pair), dtype=np.int64)  # how many seen users prefer the first of a pair
    for number, prefers_P in enumerate(_tastes_of_users(world, taste, pair, prefers_first, group)):
        rows.append(_choices(world, prefers_P, is_test, random))
        if number < world.users:
            fans_P += prefers_P
    user = np.concatenate([np.full(len(chosen), number) for number, (chosen, _, _) in enumerate(rows)])
    at, first, split = (np.concatenate([row[part] for row in rows]) for part in range(3))
    chosen = np.where(first, pair[at, 0], pair[at, 1])
    rejected = np.where(first, pair[at, 1], pair[at, 0])
    controversial = (fans_P > 0) & (fans_P < world.users)

    texts = [_text(prompts[row // per_prompt], shows[row], names, random) for row in range(len(shows))]
    response_id = np.array([f"r{row:05d}" for row in range(len(shows))])
    prompt_id = np.array([f"p{row:04d}" for row in range(world.prompts)])
    user_id = np.array([f"user-{row:04d}" for row in range(total)])
    responses = {
        "response_id": response_id,
        "prompt_id": np.repeat(prompt_id, per_prompt),
        "prompt": np.repeat(np.array(prompts), per_prompt),
        "response": texts,
    } | {f"shows_{name}": shows[:, column] > 0 for column, name in enumerate(names)}
    comparisons = {
        "user_id": user_id[user],
        "prompt_id": prompt_id[prompt_of_pair[at]],
        "chosen_id": response_id[chosen],
        "rejected_id": response_id[rejected],
        "split": split,
        "controversial": controversial[at],
    }
    users = {
        "user_id": user_id,
        "cohort": np.where(np.arange(total) < world.users, "seen", "unseen"),
        "group": np.array([f"group-{number}" for number in group]),
    }
    tables = [
        pa.table({name: pa.array(np.asarray(column).tolist()) for name, column in columns.items()})
        for columns in (responses, comparisons, users)
    ]
    majority = np.maximum(fans_P, world.users - fans_P)[at[split == "test"]].mean() / world.users
    truth = PlantedTruth(
        bayes_accuracy=1 - world.noise,
        uniform_bayes_accuracy=float(majority * (1 - world.noise) + (1 - majority) * world.noise),
        agreement=_agreement(prefers_first),
        weights=taste.weight_GA.round(4).tolist(),
        attributes=names,
    )
    return PreferenceDataset.from_tables(*tables), truth


def save_planted(world: PlantedWorld, folder: Path) -> tuple[PreferenceDataset, PlantedTruth]:
    """Generates a world into a folder, with its truth in `truth.json`.

    Raises:
        OutputError: The folder is there and not empty, or cannot be written.
    """
    dataset, truth = generate(world)
    write_tables(folder, dataset.tables())
    write_json(folder / "truth.json", vars(truth) | {"world": world.model_dump(mode="json")})
    return dataset, truth


def load_truth(folder: Path) -> dict[str, Any]:
    """What `save_planted` wrote in `truth.json`."""
    return read_json(folder / "truth.json")


def _clear_pairs(world: PlantedWorld, shows: np.ndarray, utility: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (P, 2) of response rows to one prompt, and whether each group prefers the first: bool (P, groups).

    A person can only be asked what they can tell: responses that show different things, and of each prompt's pairs the
    quarter that no group is nearly indifferent to.
    """
    within = np.array(list(itertools.combinations(range(world.responses_per_prompt), 2)))
    pair = (np.arange(world.prompts)[:, None, None] * world.responses_per_prompt + within[None]).reshape(-1, 2)
    margin = utility[pair[:, 0]] - utility[pair[:, 1]]
    differs = (shows[pair[:, 0]] != shows[pair[:, 1]]).any(axis=1)
    gap = np.where(differs, np.abs(margin).min(axis=1), -1.0).reshape(world.prompts, -1)
    clear = (gap >= np.quantile(gap, 3 / 4, axis=1, keepdims=True)).ravel()
    return pair[clear & differs], margin[clear & differs] > 0


def _weights(world: PlantedWorld, shows: np.ndarray, merit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Weights (groups, attributes): own tastes mixed with a common one until groups agree as often as asked."""
    own = np.linalg.qr(random.normal(size=(shows.shape[1], world.groups)))[0].T
    common = np.linalg.norm(own, axis=1).mean() * random.permutation(np.linspace(-0.6, 0.6, shows.shape[1]))

    def mixed(share: float) -> np.ndarray:
        return (1 - share) * own + share * common

    # Agreement is not quite monotone in the share, so the nearest of a grid is taken.
    grid = [mixed(share) for share in np.linspace(0, 1, 101)]
    reached = [_agreement(_clear_pairs(world, shows, shows @ weight.T + merit[:, None])[1]) for weight in grid]
    return grid[int(np.argmin(np.abs(np.array(reached) - world.agreement)))]


def _tastes_of_users(
    world: PlantedWorld, taste: PlantedTastes, pair: np.ndarray, prefers_first: np.ndarray, group: np.ndarray
) -> Iterator[np.ndarray]:
    """Of each user in turn: whether they prefer the first of each pair, bool (P,)."""
    # By a generator of its own: worlds that differ in individuality alone have the same users and pairs.
    random = np.random.default_rng([world.seed, 1])
    shows_PA = taste.shows_RA[pair[:, 0]] - taste.shows_RA[pair[:, 1]]
    merit_P = taste.merit_R[pair[:, 0]] - taste.merit_R[pair[:, 1]]
    for number in group:
        if not world.individuality:
            yield prefers_first[:, number]
            continue
        of_group_A = taste.weight_GA[number]
        own_A = random.normal(size=len(of_group_A))
        own_A *= np.linalg.norm(of_group_A) / np.linalg.norm(own_A)
        weight_A = (1 - world.individuality) * of_group_A + world.individuality * own_A
        yield shows_PA @ weight_A + merit_P > 0


def _agreement(prefers_first: np.ndarray) -> float:
    """Share of pairs on which two groups agree, mean over pairs of groups; 1 for a single group."""
    groups = prefers_first.shape[1]
    if groups == 1:
        return 1.0
    return float(
        np.mean(
            [(prefers_first[:, one] == prefers_first[:, other]).mean() for one, other in itertools.combinations(range(groups), 2)]
        )
    )


def _choices(
    world: PlantedWorld, prefers_first: np.ndarray, is_test: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One user's pairs, whether each first response was chosen, and the splits."""
    count = world.comparisons_per_user
    if world.protocol == "avg":
        count = int(random.integers(1, 2 * count))
    train = random.choice(np.flatnonzero(~is_test), count + world.valid_comparisons, replace=False)
    test = random.choice(np.flatnonzero(is_test), min(world.test_comparisons, int(is_test.sum())), replace=False)
    at = np.concatenate([train, test])
    first = prefers_first[at] ^ (random.random(len(at)) < world.noise)
    split = np.array(["train"] * count + ["valid"] * world.valid_comparisons + ["test"] * len(test))
    return at, first, split


def _text(prompt: str, shows: np.ndarray, names: list[str], random: np.random.Generator) -> str:
    subject = next(name for name in sorted(_SUBJECTS, key=len, reverse=True) if name in prompt)
    parts = [str(random.choice(_OPENINGS)).format(subject)]
    parts += [str(random.choice(ATTRIBUTES[name])) for name, shown in zip(names, shows, strict=True) if shown]
    parts[1:] = random.permutation(np.array(parts[1:], dtype=object)).tolist()
    text = " ".join(parts)
    return text[0].upper() + text[1:]
