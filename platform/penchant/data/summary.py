"""What is in a data set, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from penchant.data.dataset import PreferenceDataset
from penchant.data.schema import SPLITS


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """Counts of a data set."""

    seen_users: int
    unseen_users: int
    groups: int
    """Known groups of users; 0 where none are given."""
    prompts: int
    responses: int
    repeated_texts: int
    """Responses whose prompt and text stand under another id before. In the graph each id is a node of its own, so choices of
    such a text are spread over them; a new user's are known by the text, and all go to the node of the last id."""
    comparisons: dict[str, int]
    """By split."""
    comparisons_per_user: dict[str, float]
    """Train comparisons of a seen user: minimum, median, maximum."""
    density: float
    """Edges for each response of the training graph: 2 x train comparisons of seen users / responses."""
    disagreement: float | None
    """Share of the pairs judged by two users or more that were chosen both ways; None where there is no such pair."""
    controversial: float | None
    """Share of comparisons marked controversial; None where they are not marked."""

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return asdict(self)


def summarise(dataset: PreferenceDataset) -> DataSummary:
    """Counts a data set."""
    comparisons = dataset.comparisons
    train = dataset.select(split="train", cohort="seen")
    per_user = np.bincount(train.user, minlength=len(dataset.user_ids))[dataset.seen]
    marked = comparisons.controversial
    return DataSummary(
        seen_users=int(dataset.seen.sum()),
        unseen_users=int((~dataset.seen).sum()),
        groups=len(dataset.group_names),
        prompts=len(dataset.prompt_ids),
        responses=len(dataset.response_ids),
        repeated_texts=len(dataset.response_ids) - len(_texts(dataset)),
        comparisons={name: int((comparisons.split == code).sum()) for code, name in enumerate(SPLITS)},
        comparisons_per_user={
            "minimum": float(per_user.min()) if len(per_user) else 0.0,
            "median": float(np.median(per_user)) if len(per_user) else 0.0,
            "maximum": float(per_user.max(initial=0)),
        },
        density=2 * len(train) / len(dataset.response_ids),
        disagreement=_disagreement(comparisons.chosen, comparisons.rejected),
        controversial=None if marked is None else float(marked.mean()),
    )


def _texts(dataset: PreferenceDataset) -> set[tuple[str, str]]:
    return {(dataset.prompts[prompt], text) for prompt, text in zip(dataset.prompt_of_response, dataset.responses, strict=True)}


def _disagreement(chosen: np.ndarray, rejected: np.ndarray) -> float | None:
    pair = np.stack([np.minimum(chosen, rejected), np.maximum(chosen, rejected)], axis=1)
    _, inverse = np.unique(pair, axis=0, return_inverse=True)
    count = np.bincount(inverse)
    one_way = np.bincount(inverse, weights=chosen < rejected)
    judged = count >= 2
    if not judged.any():
        return None
    return float(((one_way > 0) & (one_way < count))[judged].mean())
