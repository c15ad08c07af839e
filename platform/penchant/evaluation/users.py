"""Looking at user embeddings: where users lie, and whether hidden groups lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA


@dataclass(frozen=True)
class UserMap:
    """Users on a plane: aligned arrays of the users that are shown."""

    x: np.ndarray
    y: np.ndarray
    user: np.ndarray
    """Rows of the users shown."""


def project_users(embedding_UD: np.ndarray, *, limit: int = 2000, seed: int = 0) -> UserMap:
    """The two main directions of the embeddings (PCA), for at most `limit` users drawn at random."""
    random = np.random.default_rng(seed)
    user = np.arange(len(embedding_UD))
    if len(user) > limit:
        user = np.sort(random.choice(user, limit, replace=False))
    plane = PCA(n_components=2, random_state=seed).fit(embedding_UD).transform(embedding_UD[user])
    return UserMap(plane[:, 0], plane[:, 1], user)


def group_purity(embedding_UD: np.ndarray, group_U: np.ndarray, *, fit_U: np.ndarray, of_U: np.ndarray) -> float:
    """Share of users (mask `of_U`) whose nearest centroid is their own group's; centroids are of users under `fit_U`."""
    groups = np.unique(group_U[fit_U])
    centroid = np.stack([embedding_UD[fit_U & (group_U == group)].mean(0) for group in groups])
    centroid /= np.linalg.norm(centroid, axis=1, keepdims=True).clip(1e-12)
    nearest = groups[(embedding_UD[of_U] @ centroid.T).argmax(axis=1)]
    return float((nearest == group_U[of_U]).mean())
