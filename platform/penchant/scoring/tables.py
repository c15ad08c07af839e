"""Scores of a fixed list of texts under any users, what does not depend on the user computed once.

Shapes: R texts, N askings (a text for a user), D user embedding, H hidden width of the head.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from penchant.backbone.cache import text_key
from penchant.backbone.reading import TextReader
from penchant.backbone.tokens import Text
from penchant.reward.experts import ExpertModel
from penchant.reward.heads import RewardHead
from penchant.reward.mole.routing import Routing
from penchant.reward.mole.sharing import distinct_sequences
from penchant.scoring.vectors import VectorCache


class ScoreTable(Protocol):
    """Texts that can be scored for users."""

    def score(self, row_N: np.ndarray, user_ND: Tensor | None) -> Tensor:
        """Scores (N,) of texts by their rows, for users by their embeddings; None for a model without users."""


class FrozenTable:
    """A head over what it makes of texts' features: (R, H)."""

    def __init__(self, head: RewardHead, hidden_RH: Tensor) -> None:
        self.head, self.hidden_RH = head, hidden_RH

    @classmethod
    @torch.no_grad()
    def from_features(cls, head: RewardHead, feature_RF: Tensor) -> FrozenTable:
        """The table of texts with these features of the frozen base."""
        return cls(head, head.hidden(feature_RF))

    @torch.no_grad()
    def score(self, row_N: np.ndarray, user_ND: Tensor | None) -> Tensor:
        """See `ScoreTable.score`."""
        return self.head.score(self.hidden_RH[torch.from_numpy(row_N)], user_ND)


class ExpertTable:
    """A base with experts: each (text, route) is encoded when it is first asked for, and kept.

    Base, adapters and gates are where the reader puts its batches; the head, users and what is kept stay on the CPU.

    Args:
        model: In eval mode.
        reader: Makes texts ready for the model's base.
        texts: R.
        batch_size: Sequences encoded at once.
        cache: Where sequences are kept that others may ask for too; by default a cache of the table's own, without a bound.
        on_progress: Told after each batch how many sequences of how many are encoded.
    """

    def __init__(
        self,
        model: ExpertModel,
        reader: TextReader,
        texts: Sequence[Text],
        *,
        batch_size: int = 64,
        cache: VectorCache | None = None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.model, self.reader, self.texts = model, reader, texts
        self.batch_size, self.on_progress = batch_size, on_progress
        self.cache = VectorCache(sys.maxsize) if cache is None else cache  # an empty one is false
        self._keys = [text_key(text) for text in texts]

    @torch.no_grad()
    def score(self, row_N: np.ndarray, user_ND: Tensor | None) -> Tensor:
        """See `ScoreTable.score`."""
        model = self.model
        text_N = torch.from_numpy(row_N).to(self.reader.device)
        routing = None
        if user_ND is not None and model.mole is not None:
            user_UD, user_N = torch.unique(user_ND.to(self.reader.device), dim=0, return_inverse=True)
            routed = model.route(user_UD)
            assert routed is not None
            routing = Routing(routed.routes, user_N)
        sequences = distinct_sequences(text_N, routing, routes_are_few=model.routes_are_few)
        if sequences.routing is None or model.routes_are_few:
            hidden_SH = self._look_up(sequences.text, sequences.routing)
        else:
            hidden_SH = self._encode(sequences.text, sequences.routing)  # a route of one's own is not asked for again
        return model.head.score(hidden_SH[sequences.asking.cpu()], user_ND)

    def _look_up(self, text_S: Tensor, routing: Routing | None) -> Tensor:
        """Hidden vectors (S, H) of sequences, which are known again by their text and expert."""
        experts = [0] * len(text_S) if routing is None else routing.distinct()[0].expert[routing.user_index, 0].tolist()
        keys = [(self._keys[text], expert) for text, expert in zip(text_S.tolist(), experts, strict=True)]
        return self.cache.look_up(
            keys, lambda missing: self._encode(text_S[missing], None if routing is None else routing.take(torch.tensor(missing)))
        )

    def _encode(self, text_S: Tensor, routing: Routing | None) -> Tensor:
        """Hidden vectors (S, H) of sequences, those of like length together."""
        length_S = torch.tensor([len(self.texts[text][1]) for text in text_S.tolist()])
        order, parts = length_S.argsort(), []
        for rows in order.split(self.batch_size):
            texts = self.reader.read([self.texts[text] for text in text_S[rows].tolist()])
            features = self.model.features(texts, None if routing is None else routing.take(rows))
            parts.append(self.model.head.hidden(features.cpu()))
            self.on_progress(min(len(parts) * self.batch_size, len(order)), len(order))
        return torch.cat(parts)[order.argsort()]
