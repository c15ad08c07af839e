"""Onboarding by neighbours: a new user's embedding from those of seen users who chose the same responses.

CoPL, section 3.3: each neighbour weighs `softmax(mean over the comparisons of logsigmoid(s_chosen - s_rejected) / 0.07)`, with
`s = e_neighbour . e_response`; the embedding is the weighted sum of theirs, normalised. There is no optimisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PAPER_TEMPERATURE = 0.07
"""CoPL, section 4.1."""


@dataclass(frozen=True)
class NeighbourIndex:
    """Who chose what, as a sparse index: never a users x responses matrix."""

    user_UD: np.ndarray
    """Seen users' normalised embeddings."""
    response_RD: np.ndarray
    """Responses' embeddings."""
    offset: np.ndarray
    """int64 (R + 1,): where each response's run of choosers starts."""
    chooser: np.ndarray
    """int32 (E,): seen users who chose the response, grouped by response."""
    times: np.ndarray
    """int32 (E,): how often they did, against other responses."""
    cap: int = 512
    """Neighbours taken from one response at most: an evenly spaced sample, always the same."""

    @classmethod
    def build(
        cls, user: np.ndarray, chosen: np.ndarray, user_UD: np.ndarray, response_RD: np.ndarray, *, cap: int = 512
    ) -> NeighbourIndex:
        """The index of aligned arrays (C,): user row and chosen response row of every training comparison."""
        order = np.lexsort((user, chosen))
        chosen, user = chosen[order], user[order]
        first = np.ones(len(user), dtype=bool)
        first[1:] = (chosen[1:] != chosen[:-1]) | (user[1:] != user[:-1])
        offset = np.zeros(len(response_RD) + 1, dtype=np.int64)
        np.cumsum(np.bincount(chosen[first], minlength=len(response_RD)), out=offset[1:])
        times = np.diff(np.append(np.flatnonzero(first), len(first)))
        return cls(user_UD, response_RD, offset, user[first].astype(np.int32), times.astype(np.int32), cap)

    def neighbours(self, chosen: np.ndarray) -> np.ndarray:
        """Seen users who chose one of these responses: distinct rows, ascending."""
        runs = []
        for response in np.unique(chosen):
            run = self.chooser[self.offset[response] : self.offset[response + 1]]
            if len(run) > self.cap:
                run = run[np.linspace(0, len(run) - 1, self.cap).astype(np.int64)]
            runs.append(run)
        return np.unique(np.concatenate(runs)) if runs else np.zeros(0, dtype=np.int32)

    def embed(self, chosen: np.ndarray, rejected: np.ndarray, *, temperature: float = PAPER_TEMPERATURE) -> np.ndarray | None:
        """The embedding (D,) of a user with these comparisons, or None if nobody chose what this user chose."""
        neighbour = self.neighbours(chosen)
        if not len(neighbour):
            return None
        user_ND = self.user_UD[neighbour]
        margin_NC = user_ND @ (self.response_RD[chosen] - self.response_RD[rejected]).T
        fit_N = -np.logaddexp(0.0, -margin_NC).mean(axis=1)
        return combine(user_ND, softmax(fit_N / temperature))


def softmax(logit: np.ndarray) -> np.ndarray:
    """Softmax of a vector, stable."""
    weight = np.exp(logit - logit.max())
    return weight / weight.sum()


def combine(user_ND: np.ndarray, weight_N: np.ndarray) -> np.ndarray | None:
    """The weighted sum of embeddings, normalised: (D,); None if they cancel."""
    total = weight_N @ user_ND
    length = float(np.linalg.norm(total))
    return (total / length).astype(np.float32) if length > 1e-12 else None
