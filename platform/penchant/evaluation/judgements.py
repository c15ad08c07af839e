"""What each method says of the test comparisons: the input of every metric."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

METHODS = ("uniform", "frozen", "personalised", "oracle", "wrong_user")
"""Methods in the order that tables show them. `frozen` is the frozen phase's personalised head, where there are experts too;
`oracle` is absent where groups are not known."""


@dataclass(frozen=True)
class Judgements:
    """Test comparisons, and each method's margin on them: aligned arrays (C,)."""

    user: np.ndarray
    """int64: row of the data set's users."""
    prompt: np.ndarray
    """int64: row of the data set's prompts."""
    seen: np.ndarray
    """bool: whether the user was in training."""
    controversial: np.ndarray | None
    """bool: whether tastes disagree on the pair, where that is known."""
    margins: dict[str, np.ndarray]
    """Method -> score(chosen) - score(rejected)."""

    def take(self, mask: np.ndarray) -> Judgements:
        """The comparisons under a mask."""
        return Judgements(
            user=self.user[mask],
            prompt=self.prompt[mask],
            seen=self.seen[mask],
            controversial=None if self.controversial is None else self.controversial[mask],
            margins={name: margin[mask] for name, margin in self.margins.items()},
        )

    def cells(self) -> dict[tuple[str, str], np.ndarray]:
        """(cohort, kind) -> mask; cells without a comparison are left out."""
        kinds = {"all": np.ones(len(self.user), dtype=bool)}
        if self.controversial is not None:
            kinds |= {"common": ~self.controversial, "controversial": self.controversial}
        cohorts = {"seen": self.seen, "unseen": ~self.seen}
        masks = {(cohort, kind): c & k for cohort, c in cohorts.items() for kind, k in kinds.items()}
        return {name: mask for name, mask in masks.items() if mask.any()}
