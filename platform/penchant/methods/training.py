"""Training a method beside uniform and the oracle, on the same batches, by the heads' own loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from penchant.methods.method import Choices, Method
from penchant.reward.config import RewardSettings
from penchant.reward.heads import RewardHead
from penchant.reward.training import RewardData, RewardTrainer, UserTable

PERSONALISED = "personalised"
"""The name of the method among the models."""


class MethodTrainer(RewardTrainer):
    """Trains the heads of `data` and, as `personalised`, a method. One worker alone.

    Args:
        settings: Optimisation.
        data: What the heads know; its `users` need a `personalised`, which is the method's place.
        user: int64 (C,): the user of each of its comparisons, counted from 0.
        num_users: U.
        build: Makes the method.
        feature_RF: What the method reads of the responses; by default what the heads do.
        attribute_U: int64: the users' values of the method's attribute.
    """

    def __init__(
        self,
        settings: RewardSettings,
        data: RewardData,
        *,
        user: Tensor,
        num_users: int,
        build: Callable[[], Method],
        feature_RF: Tensor | None = None,
        attribute_U: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._build = build
        self._user = user.to(device)
        self._inputs_RF = (data.feature_RF if feature_RF is None else feature_RF).to(device)
        super().__init__(settings, data, device=device)
        chosen, rejected = self.comparisons
        rows = self.train_rows
        self.choices = Choices(self._inputs_RF, self._user[rows], chosen[rows], rejected[rows], num_users, attribute_U).to(device)
        self._place = torch.full((len(self._user),), -1, device=device)
        self._place[rows] = torch.arange(len(rows), device=device)
        self._seen_UD: Tensor | None = None

    @property
    def method(self) -> Method:
        """The method that is trained."""
        method = self.heads[PERSONALISED]
        assert isinstance(method, Method)
        return method

    def _make_head(self, name: str, users: UserTable | None) -> RewardHead:
        return self._build() if name == PERSONALISED else super()._make_head(name, users)

    def _make_optimizer(self, head: RewardHead) -> torch.optim.Optimizer:
        if not isinstance(head, Method):
            return super()._make_optimizer(head)
        settings, own = self.settings, head.user_parameters()
        groups = [
            # Decay would move a user's row at every step, also where nothing was heard of the user.
            {"params": [parameter]} | ({"lr": own[name], "weight_decay": 0.0} if name in own else {})
            for name, parameter in head.named_parameters()
        ]
        return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def _features(self, name: str) -> Tensor:
        return self._inputs_RF if name == PERSONALISED else super()._features(name)

    def _loss(self, name: str, model: torch.nn.Module, rows: Tensor) -> Tensor:
        return self.method.loss(self.choices, self._place[rows]) if name == PERSONALISED else super()._loss(name, model, rows)

    def validate(self) -> dict[str, float]:
        """See `RewardTrainer.validate`. Seen users are what the training choices say of them."""
        self._seen_UD = self.seen_vectors()
        return super().validate()

    def _margin(self, name: str, model: torch.nn.Module, rows: Tensor) -> Tensor:
        if name != PERSONALISED:
            return super()._margin(name, model, rows)
        assert self._seen_UD is not None
        chosen, rejected = self.comparisons
        every = Choices(self._inputs_RF, self._user, chosen, rejected, self.choices.num_users)
        return self.method.margin(every, rows, self._seen_UD[self._user[rows]])

    @torch.no_grad()
    def seen_vectors(self) -> Tensor:
        """Vectors (U, D) of the users of training, as the method is now."""
        self.method.eval()
        return self.method.seen_vectors(self.choices)
