"""From a model and a data set to what each method says of the test comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penchant.backbone.cache import text_key
from penchant.data import PreferenceDataset
from penchant.evaluation.judgements import Judgements
from penchant.reward.heads import RewardHead
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.onboarding import Comparisons, rank_within


@dataclass(frozen=True)
class EmbeddedUsers:
    """An embedding for every user of a data set."""

    embedding_UD: Tensor
    known_U: np.ndarray
    """bool (U,): False for a user with nothing to go by, who gets the uniform score."""


class Evaluator:
    """Judges a data set's test comparisons with a bundle's model, the oracle and the wrong user's embedding.

    Args:
        model: The bundle at work.
        dataset: Seen users are looked up in the bundle; unseen ones are onboarded from their train and valid rows.
        feature_RF: Features of the data set's responses, in its order.
        oracle: A head trained on the users' true groups, where there is one.
        seed: Fixes the wrong users and the order of an unseen user's comparisons.
    """

    def __init__(
        self,
        model: PersonalisedRewardModel,
        dataset: PreferenceDataset,
        feature_RF: Tensor,
        *,
        oracle: RewardHead | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.dataset, self.oracle = model, dataset, oracle
        self.feature_RF = feature_RF.float()
        self.random = np.random.default_rng(seed)
        with torch.no_grad():
            self.hidden_RH = model.parts.personalised.hidden(self.feature_RF)
            self.uniform_R = model.uniform_scores(self.feature_RF)
        row = {key: number for number, key in enumerate(model.parts.response_keys)}
        self.known_R = np.array([row.get(key, -1) for key in response_keys(dataset)], dtype=np.int64)
        self.test = dataset.select(split="test")
        unseen = dataset.select(split=("train", "valid"), cohort="unseen")
        self._onboarding = unseen.take(self.random.permutation(len(unseen)))

    def users(self, limit: int | None = None) -> EmbeddedUsers:
        """Every user's embedding; unseen users are onboarded from at most `limit` of their comparisons."""
        dataset, parts = self.dataset, self.model.parts
        embedding = torch.zeros(len(dataset.user_ids), parts.user_UD.shape[1])
        known = np.zeros(len(dataset.user_ids), dtype=bool)
        row = {user: number for number, user in enumerate(parts.user_ids)}
        at = np.array([row.get(user, -1) for user in dataset.user_ids])
        inside = dataset.seen & (at >= 0)
        embedding[torch.from_numpy(inside)] = parts.user_UD[at[inside]]
        known[inside] = True
        rows = self._onboarding
        if limit is not None:
            rows = rows.take(rank_within(rows.user) < limit)
        users, number = np.unique(rows.user, return_inverse=True)
        if len(users):
            coded = Comparisons(number, rows.chosen, rows.rejected)
            embedding[torch.from_numpy(users)] = self.model.embed(coded, self.feature_RF, self.known_R, num_users=len(users))
            known[users] = True
        return EmbeddedUsers(embedding, known)

    def judge(self, users: EmbeddedUsers) -> Judgements:
        """Margins of every method on the test comparisons."""
        dataset, test = self.dataset, self.test
        margins = {
            "uniform": (self.uniform_R[test.chosen] - self.uniform_R[test.rejected]).numpy(),
            "personalised": self._personal_margin(users.embedding_UD[test.user], users.known_U[test.user]),
        }
        wrong = self._wrong_users(users)
        margins["wrong_user"] = self._personal_margin(users.embedding_UD[wrong][test.user], users.known_U[wrong][test.user])
        if self.oracle is not None and dataset.group is not None and (dataset.group >= 0).all():
            one_hot = torch.nn.functional.one_hot(torch.from_numpy(dataset.group), len(dataset.group_names)).float()
            with torch.no_grad():
                hidden = self.oracle.hidden(self.feature_RF)
                group = one_hot[test.user]
                margin = self.oracle.score(hidden[test.chosen], group) - self.oracle.score(hidden[test.rejected], group)
            margins["oracle"] = margin.numpy()
        return Judgements(
            user=test.user,
            prompt=dataset.prompt_of_response[test.chosen],
            seen=dataset.seen[test.user],
            controversial=test.controversial,
            margins=margins,
        )

    def onboarding_curve(self, counts: Sequence[int]) -> dict[int, Judgements]:
        """Judgements of unseen users' test comparisons after so many of their comparisons; with 0, uniform."""
        curve = {}
        for count in counts:
            judged = self.judge(self.users(limit=count))
            curve[count] = judged.take(~judged.seen)
        return curve

    @torch.no_grad()
    def _personal_margin(self, embedding_CD: Tensor, known_C: np.ndarray) -> np.ndarray:
        test, head = self.test, self.model.parts.personalised
        margin = head.score(self.hidden_RH[test.chosen], embedding_CD) - head.score(self.hidden_RH[test.rejected], embedding_CD)
        uniform = self.uniform_R[test.chosen] - self.uniform_R[test.rejected]
        return torch.where(torch.from_numpy(known_C), margin, uniform).numpy()

    def _wrong_users(self, users: EmbeddedUsers) -> np.ndarray:
        """For each user a random other one with an embedding: of another group where groups are known."""
        dataset = self.dataset
        pool = np.flatnonzero(users.known_U)
        everyone = np.arange(len(dataset.user_ids))
        if len(pool) < 2:
            return everyone
        wrong = self.random.choice(pool, len(everyone))
        for _ in range(100):
            same = wrong == everyone
            if dataset.group is not None:
                same |= dataset.group[wrong] == dataset.group
            if not same.any():
                break
            wrong[same] = self.random.choice(pool, int(same.sum()))
        return wrong


def response_keys(dataset: PreferenceDataset) -> list[str]:
    """The text key of each response with its prompt, as hex."""
    return [
        text_key((dataset.prompts[prompt], response)).hex()
        for prompt, response in zip(dataset.prompt_of_response, dataset.responses, strict=True)
    ]
