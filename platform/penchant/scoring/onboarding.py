"""Embedding a user from a few comparisons, without optimisation: three kinds behind one object.

Shapes: U new users, C comparisons, K prototypes, D user embedding, H hidden width of the reward head.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional

from penchant.graph.encoder import GraphEncoder
from penchant.graph.inductive import embed_users
from penchant.graph.neighbours import NeighbourIndex
from penchant.reward.heads import RewardHead


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of new users: aligned arrays (C,); `user` counts from 0, the responses are rows of some table."""

    user: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, mask: np.ndarray) -> Comparisons:
        """The comparisons under a mask."""
        return Comparisons(self.user[mask], self.chosen[mask], self.rejected[mask])


def rank_within(group: np.ndarray) -> np.ndarray:
    """Each element's position among the elements of its group, in order: int64 (N,)."""
    order = np.argsort(group, kind="stable")
    sorted_group = group[order]
    starts = np.flatnonzero(np.r_[True, sorted_group[1:] != sorted_group[:-1]]) if len(group) else np.zeros(0, int)
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
    return rank


def fit_prototypes(user_UD: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Prototype users: k-means centres of the seen users' embeddings, normalised: (K, D) with K at most `count`."""
    distinct = len(np.unique(np.round(user_UD, 6), axis=0))
    means = KMeans(n_clusters=min(count, distinct), n_init=1, random_state=seed).fit(user_UD)
    centre = means.cluster_centers_
    return (centre / np.linalg.norm(centre, axis=1, keepdims=True).clip(1e-12)).astype(np.float32)


@torch.no_grad()
def prototype_scores(head: RewardHead, prototype_KD: Tensor, hidden_RH: Tensor) -> Tensor:
    """Scores of texts under each prototype user: (R, K)."""
    return torch.stack([head.score(hidden_RH, prototype) for prototype in prototype_KD], dim=1)


@torch.no_grad()
def embed_by_prototypes(
    head: RewardHead,
    prototype_KD: Tensor,
    hidden_RH: Tensor,
    comparisons: Comparisons,
    *,
    num_users: int,
    temperature: float,
) -> Tensor:
    """Weighs prototypes by how well the reward model under each explains the choices: (U, D), normalised.

    `softmax(mean over the comparisons of logsigmoid(margin) / temperature)`; users without a comparison get the mean
    prototype.
    """
    score_RK = prototype_scores(head, prototype_KD, hidden_RH)
    user = torch.from_numpy(comparisons.user)
    fit_CK = functional.logsigmoid(score_RK[comparisons.chosen] - score_RK[comparisons.rejected])
    total_UK = torch.zeros(num_users, len(prototype_KD)).index_add(0, user, fit_CK)
    count_U = torch.bincount(user, minlength=num_users).clamp(min=1)
    weight_UK = torch.softmax(total_UK / count_U[:, None] / temperature, dim=1)
    return functional.normalize(weight_UK @ prototype_KD, dim=1)


def embed_by_neighbours(
    index: NeighbourIndex, comparisons: Comparisons, *, num_users: int, temperature: float
) -> tuple[Tensor, np.ndarray]:
    """CoPL's onboarding for each user: (U, D), and which users have a neighbour: bool (U,)."""
    embedding_UD = torch.zeros(num_users, index.user_UD.shape[1])
    found_U = np.zeros(num_users, dtype=bool)
    order = np.argsort(comparisons.user, kind="stable")
    bounds = np.searchsorted(comparisons.user[order], np.arange(num_users + 1))
    for user, (start, stop) in enumerate(itertools.pairwise(bounds)):
        rows = order[start:stop]
        embedding = index.embed(comparisons.chosen[rows], comparisons.rejected[rows], temperature=temperature)
        if embedding is not None:
            embedding_UD[user], found_U[user] = torch.from_numpy(embedding), True
    return embedding_UD, found_U


def embed_by_forward(
    encoder: GraphEncoder,
    response_layers: Tensor,
    response_degree: Tensor,
    comparisons: Comparisons,
    *,
    num_users: int,
) -> Tensor:
    """The graph encoder over the new users' own edges: (U, D), normalised. For inductive encoders."""
    return embed_users(
        encoder,
        response_layers,
        response_degree,
        comparisons.user,
        comparisons.chosen,
        comparisons.rejected,
        num_users=num_users,
    )
