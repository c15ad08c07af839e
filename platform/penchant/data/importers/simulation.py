"""Simulated users, as CoPL's authors make theirs on public data (repository ml-postech/CoPL, data/datagen_*.py).

Each user belongs to a taste, draws pairs of responses at random, and chooses by that taste. Seen users are `users`; the authors
keep those who are onboarded in a file of their own, whose making is not in their repository: `unseen_users` are drawn alike,
and their number is ours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from penchant.config import Settings
from penchant.data.importers.collecting import Origin, Responses, list_left_out, write_dataset
from penchant.errors import ConfigError, DataError


class Simulation(Settings):
    """How users are simulated, and what they are asked."""

    users: int = Field(10_000, ge=1)
    """Seen users (the authors' --num_users)."""
    unseen_users: int = Field(500, ge=0)
    """Users kept out of training; ours, 5% as in `penchant data split`."""
    protocol: Literal["all", "avg"] = "all"
    """`all`: every user has `comparisons`. `avg`: 1 to 2 x `comparisons` - 1, evenly, so that many on average."""
    comparisons: int | None = Field(None, ge=1)
    """Of a user, train and valid together; by default the published number of the data set. The last one is valid, where a user
    has so many or more (the authors train the reward model on it too)."""
    test_comparisons: int = Field(10, ge=1)
    """On test prompts, of a user. The authors draw 100, evaluate on 11 of these, and take a tenth of those for validation."""
    test_prompts: float = Field(0.1, gt=0, lt=1)
    """Share of the prompts that is for test, where the source has no split of its own (the authors' ratio_evalset)."""
    tokenizer: str | None = None
    """A folder or hub model whose tokenizer measures texts, such as google/gemma-2b; without one no text is too long."""
    max_tokens: int = Field(1024, ge=1)
    """Pairs with a longer response, by that tokenizer, are left out (the authors')."""
    seed: int = Field(0, ge=0)
    """Fixes everything that is drawn."""


@dataclass(frozen=True)
class Draw:
    """Which pairs each user was asked about: aligned arrays (C,)."""

    user: np.ndarray
    """int64: number of the user; the seen ones come first."""
    pair: np.ndarray
    """int64: row of the pairs."""
    split: np.ndarray
    """Object: train, valid or test."""


def draw_pairs(simulation: Simulation, comparisons: int, is_test_P: np.ndarray, where: str, left_out: Counter[str]) -> Draw:
    """Asks every user about pairs, none twice.

    Args:
        comparisons: The published number of a user, where the settings have none.
        is_test_P: bool (P,), which pairs are for test.
        left_out: What was left out before, for the message.

    Raises:
        DataError: There are fewer pairs than a user is to be asked about.
    """
    count = simulation.comparisons or comparisons
    most = count if simulation.protocol == "all" else 2 * count - 1
    train, test = np.flatnonzero(~is_test_P), np.flatnonzero(is_test_P)
    told = list_left_out(left_out)
    for pairs, asked, words in ((train, most, "for training"), (test, simulation.test_comparisons, "for test")):
        if len(pairs) < asked:
            raise DataError(
                f"There are {len(pairs):,} pairs {words}; a user is asked about up to {asked:,}.{told}",
                where=where,
                fix="Give more of the source, or ask for fewer: --comparisons, --test-comparisons.",
            )
    random = np.random.default_rng([simulation.seed, 1])
    users, pair, split = [], [], []
    for user in range(simulation.users + simulation.unseen_users):
        own = count if simulation.protocol == "all" else int(random.integers(1, 2 * count))
        valid = int(own >= count and own > 1)
        names = ["train"] * (own - valid) + ["valid"] * valid + ["test"] * simulation.test_comparisons
        drawn = [random.choice(train, own, replace=False), random.choice(test, simulation.test_comparisons, replace=False)]
        users.append(np.full(len(names), user))
        pair.append(np.concatenate(drawn))
        split += names
    return Draw(np.concatenate(users), np.concatenate(pair), np.array(split, dtype=object))


def held_out_pairs(simulation: Simulation, prompt_P: np.ndarray) -> np.ndarray:
    """bool (P,): the pairs of the prompts that are held out for test."""
    prompts = np.unique(prompt_P)
    held_out = np.random.default_rng([simulation.seed, 0]).permutation(prompts)[: round(simulation.test_prompts * len(prompts))]
    return np.isin(prompt_P, held_out)


def even_groups(simulation: Simulation, groups: int) -> np.ndarray:
    """int64 (users,): the group of each user, equally many of each; the seen ones come first."""
    return np.concatenate([np.arange(size) * groups // max(size, 1) for size in (simulation.users, simulation.unseen_users)])


def distinct_pairs(pairs: list[tuple[int, int]]) -> np.ndarray:
    """int64 (P,): where each pair of responses first stands, in either order; blank (-1) or equal ones are none."""
    pair_P2 = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    _, first = np.unique(np.sort(pair_P2, axis=1), axis=0, return_index=True)
    first = np.sort(first)
    return first[(pair_P2[first] >= 0).all(axis=1) & (pair_P2[first, 0] != pair_P2[first, 1])]


def short_enough(simulation: Simulation, responses: pa.Table, pair_P2: np.ndarray, template: str) -> np.ndarray:
    """bool (P,): the pairs of two texts within `max_tokens`; all of them, where there is no tokenizer.

    Args:
        template: How a text is made of {prompt} and {response}.

    Raises:
        ConfigError: There is no such tokenizer.
    """
    if simulation.tokenizer is None:
        return np.ones(len(pair_P2), dtype=bool)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(simulation.tokenizer)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"There is no tokenizer {simulation.tokenizer!r} ({str(error).splitlines()[0]}).",
            where="tokenizer",
            fix="Give the folder of a model, or leave it out: then no text is too long.",
        ) from None
    short_R: list[bool] = []
    for batch in responses.to_batches(max_chunksize=1024):
        pieces = zip(batch["prompt"].to_pylist(), batch["response"].to_pylist(), strict=True)
        ids = tokenizer([template.format(prompt=prompt, response=response) for prompt, response in pieces])["input_ids"]
        short_R += [len(one) <= simulation.max_tokens for one in ids]
    return np.array(short_R, dtype=bool)[pair_P2].all(axis=1)


def write_simulated(
    out: Path,
    *,
    data_set: str,
    source: str,
    protocol: dict[str, Any],
    simulation: Simulation,
    responses: pa.Table,
    pair_P2: np.ndarray,
    controversial_P: np.ndarray,
    draw: Draw,
    first_C: np.ndarray,
    user_facts: dict[str, Any],
    left_out: Counter[str],
) -> str:
    """Writes the data set of simulated users; returns what it holds, in words.

    Args:
        pair_P2: int64 (P, 2), rows of `responses`.
        controversial_P: bool (P,), whether tastes disagree on the pair.
        first_C: bool (C,), whether the user of each drawn comparison prefers the pair's first response.
        user_facts: Further columns of the users, such as `group`.

    Raises: as `write_dataset`.
    """
    names = np.array([f"user-{number:06d}" for number in range(simulation.users + simulation.unseen_users)])
    cohort = ["seen"] * simulation.users + ["unseen"] * simulation.unseen_users
    pair_C2 = pair_P2[draw.pair]
    rows = np.arange(len(pair_C2))
    return write_dataset(
        out,
        Origin(data_set=data_set, source=source, users_are="simulated", protocol=protocol | simulation.model_dump(mode="json")),
        responses,
        user=names[draw.user],
        chosen=pair_C2[rows, np.where(first_C, 0, 1)],
        rejected=pair_C2[rows, np.where(first_C, 1, 0)],
        facts={"split": draw.split, "controversial": controversial_P[draw.pair]},
        users=pa.table({"user_id": names, "cohort": cohort} | user_facts),
        left_out=left_out,
        seed=simulation.seed,
    )


def pair_texts(responses: Responses) -> tuple[pa.Table, np.ndarray]:
    """The responses' table, and the prompt of each as a code: int64 (R,)."""
    table = responses.table()
    prompt = table["prompt_id"].combine_chunks().dictionary_encode().indices
    return table, np.asarray(prompt).astype(np.int64)
