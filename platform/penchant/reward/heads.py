"""Heads that turn a text's frozen features and a user's embedding into a score.

Shapes: N texts, F features, H hidden, D user embedding.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from penchant.backbone.standardise import Standardise
from penchant.reward.config import HeadSettings
from penchant.tensors import read_tensors


class RewardHead(nn.Module):
    """A score for a text, personal where a user embedding is given. Features are standardised inside."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.standardise = Standardise(feature_dim)

    def hidden(self, feature_NF: Tensor) -> Tensor:
        """What of a text does not depend on the user, computed once for all users: (N, H)."""
        raise NotImplementedError

    def score(self, hidden_NH: Tensor, user_ND: Tensor | None) -> Tensor:
        """Scores (N,) from `hidden` and the users' embeddings; one row of users broadcasts over all texts."""
        raise NotImplementedError

    def forward(self, feature_NF: Tensor, user_ND: Tensor | None = None) -> Tensor:
        """Scores: (N,)."""
        return self.score(self.hidden(feature_NF), user_ND)


class TwoTermHead(RewardHead):
    """`w . h + <P e_u, h>` with `h = ReLU(W x)`: a shared term and the user's own. Without a user, the shared term alone."""

    def __init__(self, settings: HeadSettings, feature_dim: int, user_dim: int) -> None:
        super().__init__(feature_dim)
        self.encode = nn.Sequential(nn.Linear(feature_dim, settings.hidden), nn.ReLU(), nn.Dropout(settings.dropout))
        self.shared = nn.Linear(settings.hidden, 1, bias=False)  # a constant would cancel in every comparison
        # No dead parameters: a model without users has no user term.
        self.personal = nn.Linear(user_dim, settings.hidden, bias=False) if user_dim else None

    def hidden(self, feature_NF: Tensor) -> Tensor:
        """See `RewardHead.hidden`."""
        return self.encode(self.standardise(feature_NF))

    def score(self, hidden_NH: Tensor, user_ND: Tensor | None) -> Tensor:
        """See `RewardHead.score`."""
        shared_N = self.shared(hidden_NH)[..., 0]
        if user_ND is None or self.personal is None:
            return shared_N
        return shared_N + (self.personal(user_ND) * hidden_NH).sum(-1)


class LinearHead(RewardHead):
    """The paper's head: one linear map. On a frozen base the user has no way in, so its scores are those of uniform."""

    def __init__(self, settings: HeadSettings, feature_dim: int, user_dim: int) -> None:
        super().__init__(feature_dim)
        self.shared = nn.Linear(feature_dim, 1, bias=False)

    def hidden(self, feature_NF: Tensor) -> Tensor:
        """See `RewardHead.hidden`."""
        return self.standardise(feature_NF)

    def score(self, hidden_NH: Tensor, user_ND: Tensor | None) -> Tensor:
        """See `RewardHead.score`."""
        return self.shared(hidden_NH)[..., 0]


def make_head(settings: HeadSettings, *, feature_dim: int, user_dim: int) -> RewardHead:
    """The head that the settings ask for; `user_dim` 0 makes one without users (uniform)."""
    kind = TwoTermHead if settings.kind == "two_term" else LinearHead
    return kind(settings, feature_dim, user_dim)


def read_head(path: Path, settings: HeadSettings, *, user_dim: int) -> RewardHead:
    """A head from the file that training left, in eval mode.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    tensors = read_tensors(path)
    head = make_head(settings, feature_dim=len(tensors["standardise.mean"]), user_dim=user_dim)
    head.load_state_dict(tensors)
    return head.eval()
