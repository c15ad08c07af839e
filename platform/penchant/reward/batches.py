"""Batches of comparisons that share prompts, so that each response is encoded once for everyone who was shown it."""

from __future__ import annotations

import numpy as np


class PromptBatches:
    """Comparisons in groups of one prompt each, and the groups of every step; fixed by the seed, whoever asks.

    Args:
        chosen: int64 (C,): rows of responses.
        rejected: int64 (C,)
        prompt: int64 (C,): each comparison's prompt.
        rows: The comparisons to deal out.
        texts_per_group: A prompt with more responses is cut into several groups.
        groups_per_step: Groups in a step.
        seed: Fixes how prompts are cut, and their order in each epoch.
    """

    def __init__(
        self,
        chosen: np.ndarray,
        rejected: np.ndarray,
        prompt: np.ndarray,
        rows: np.ndarray,
        *,
        texts_per_group: int,
        groups_per_step: int,
        seed: int,
    ) -> None:
        self.groups_per_step, self.seed = groups_per_step, seed
        random = np.random.default_rng([seed, 0])
        shuffled = rows[random.permutation(len(rows))]
        order = shuffled[np.argsort(prompt[shuffled], kind="stable")]
        bounds = np.flatnonzero(np.diff(prompt[order], prepend=-1)) if len(order) else np.zeros(0, int)
        self.groups: list[np.ndarray] = []
        for part in np.split(order, bounds[1:]):
            self.groups += _cut(part, chosen, rejected, texts_per_group) if len(part) else []

    def step(self, number: int) -> list[np.ndarray]:
        """The groups of a step: rows of comparisons."""
        first = number * self.groups_per_step
        return [self._group(first + offset) for offset in range(self.groups_per_step)]

    def _group(self, number: int) -> np.ndarray:
        epoch, place = divmod(number, len(self.groups))
        return self.groups[np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.groups))[place]]


def _cut(part: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, limit: int) -> list[np.ndarray]:
    """Runs of comparisons with at most `limit` responses each (two at least)."""
    if len(np.unique([chosen[part], rejected[part]])) <= limit:
        return [part]
    groups, texts, start = [], set[int](), 0
    for position, row in enumerate(part):
        both = {int(chosen[row]), int(rejected[row])}
        if len(texts | both) > limit:
            groups.append(part[start:position])
            texts, start = set(), position
        texts |= both
    return [*groups, part[start:]]
