"""From a model and a data set to what each method says of the test comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penchant.backbone.cache import text_key
from penchant.backbone.tokens import Text
from penchant.data import PreferenceDataset
from penchant.data.dataset import Comparisons as DatasetComparisons
from penchant.evaluation.judgements import Judgements
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.onboarding import Comparisons, rank_within
from penchant.scoring.tables import ScoreTable


@dataclass(frozen=True)
class EmbeddedUsers:
    """An embedding for every user of a data set."""

    embedding_UD: Tensor
    known_U: np.ndarray
    """bool (U,): False for a user with nothing to go by, who gets the uniform score."""

    def of(self, user: np.ndarray) -> EmbeddedUsers:
        """Everybody with the embedding of another: user i gets that of `user[i]`."""
        return EmbeddedUsers(self.embedding_UD[torch.from_numpy(user)], self.known_U[user])


class TableEvaluator:
    """Judges a data set's test comparisons with tables of scores, the oracle and the wrong user's embedding.

    Args:
        dataset: Unseen users are onboarded from their train and valid rows.
        tables: `uniform` and `personalised`, and others; each scores the data set's responses.
        oracle: What scores the responses for users by their true groups, where that was trained.
        seed: Fixes the wrong users and the order of an unseen user's comparisons.
    """

    def __init__(
        self, dataset: PreferenceDataset, tables: Mapping[str, ScoreTable], *, oracle: ScoreTable | None = None, seed: int = 0
    ) -> None:
        self.dataset, self.tables = dataset, dict(tables)
        self.random = np.random.default_rng(seed)
        self.notes: list[str] = []
        """What a reader of the last judgements should know of the wrong users."""
        if oracle is not None and dataset.group is not None and (dataset.group >= 0).all():
            self.tables["oracle"] = oracle
        self.test = dataset.select(split="test")
        unseen = dataset.select(split=("train", "valid"), cohort="unseen")
        self._onboarding = unseen.take(self.random.permutation(len(unseen)))

    def users(self, limit: int | None = None) -> EmbeddedUsers:
        """Every user's embedding; unseen users are onboarded from at most `limit` of their comparisons."""
        raise NotImplementedError

    def _onboard_from(self, limit: int | None) -> DatasetComparisons:
        """What unseen users are onboarded from: at most `limit` comparisons of each."""
        rows = self._onboarding
        return rows if limit is None else rows.take(rank_within(rows.user) < limit)

    def judge(self, users: EmbeddedUsers) -> Judgements:
        """Margins of every method on the test comparisons."""
        dataset, test = self.dataset, self.test
        uniform = self._margin("uniform", test, None)
        wrong = self._wrong_users(users)
        margins = {
            "uniform": uniform,
            "personalised": self._personal_margin("personalised", test, users, uniform),
            "wrong_user": self._personal_margin("personalised", test, users.of(wrong), uniform),
        }
        if "frozen" in self.tables:
            margins["frozen"] = self._personal_margin("frozen", test, users, uniform)
        if "oracle" in self.tables:
            one_hot = torch.nn.functional.one_hot(torch.from_numpy(dataset.group), len(dataset.group_names)).float()
            margins["oracle"] = self._margin("oracle", test, one_hot[test.user])
        return self._judgements(test, margins)

    def onboarding_curve(self, counts: Sequence[int]) -> dict[int, Judgements]:
        """What personalised says of unseen users' test comparisons after so many of their comparisons; with 0, uniform."""
        test = self.test.take(np.flatnonzero(~self.dataset.seen[self.test.user]))
        uniform = self._margin("uniform", test, None)
        curve = {}
        for count in counts:
            personalised = self._personal_margin("personalised", test, self.users(limit=count), uniform)
            curve[count] = self._judgements(test, {"uniform": uniform, "personalised": personalised})
        return curve

    def _judgements(self, test: DatasetComparisons, margins: dict[str, np.ndarray]) -> Judgements:
        return Judgements(
            user=test.user,
            prompt=self.dataset.prompt_of_response[test.chosen],
            seen=self.dataset.seen[test.user],
            controversial=test.controversial,
            margins=margins,
        )

    def _margin(self, name: str, test: DatasetComparisons, user_CD: Tensor | None) -> np.ndarray:
        table = self.tables[name]
        rows = np.concatenate([test.chosen, test.rejected])
        chosen, rejected = table.score(rows, None if user_CD is None else user_CD.repeat(2, 1)).chunk(2)
        return (chosen - rejected).numpy()

    def _personal_margin(self, name: str, test: DatasetComparisons, users: EmbeddedUsers, uniform_C: np.ndarray) -> np.ndarray:
        """The margin under each comparison's user; that of uniform for users with nothing to go by."""
        return np.where(users.known_U[test.user], self._margin(name, test, users.embedding_UD[test.user]), uniform_C)

    def _wrong_users(self, users: EmbeddedUsers) -> np.ndarray:
        """For each user a random other one with an embedding and test comparisons: of another group where groups are known and
        there is one, else any."""
        dataset = self.dataset
        everyone = np.arange(len(dataset.user_ids))
        pool = np.flatnonzero(users.known_U & np.isin(everyone, self.test.user))  # added accounts are nobody's other taste
        self.notes = []
        if len(pool) < 2:
            self.notes = ["There is no other user to take for the wrong one: the wrong user is the user."]
            return everyone
        group = everyone if dataset.group is None else dataset.group
        wrong = self.random.choice(pool, len(everyone))
        for _ in range(100):
            same = group[wrong] == group
            if not same.any():
                break
            wrong[same] = self.random.choice(pool, int(same.sum()))
        self._mend_wrong(wrong, pool, group)
        return wrong

    def _mend_wrong(self, wrong: np.ndarray, pool: np.ndarray, group: np.ndarray) -> None:
        """Draws again, in place, for those whom the draws have left with one of their own group: from the few of another, else
        any other user."""
        same, alone = group[wrong] == group, np.zeros(len(wrong), dtype=bool)
        for code in np.unique(group[same]):
            mine, apart = same & (group == code), pool[group[pool] != code]
            if len(apart):
                wrong[mine] = self.random.choice(apart, int(mine.sum()))
            else:
                alone |= mine
        # Whoever is their own wrong user is in the pool: from there so many places on, which is never themselves.
        own = np.flatnonzero(alone & (wrong == np.arange(len(wrong))))
        wrong[own] = pool[(np.searchsorted(pool, own) + self.random.integers(1, len(pool), len(own))) % len(pool)]
        judged = np.unique(self.test.user)
        if alone[judged].any():
            self.notes = [
                f"For {int(alone[judged].sum()):,} of {len(judged):,} users there is nobody of another group: the wrong user is"
                " another one of their own, whose taste may be theirs."
            ]


class UniformEvaluator(TableEvaluator):
    """Judges a model that knows no user: everybody has the same empty embedding, the wrong user too."""

    def users(self, limit: int | None = None) -> EmbeddedUsers:
        """See `TableEvaluator.users`."""
        count = len(self.dataset.user_ids)
        return EmbeddedUsers(torch.zeros(count, 0), np.ones(count, dtype=bool))


class Evaluator(TableEvaluator):
    """Judges a bundle's model.

    Args:
        model: The bundle at work.
        dataset: Seen users are looked up in the bundle; unseen ones are onboarded.
        feature_RF: Features of the data set's responses, in its order.
        oracle: See `TableEvaluator`.
        seed: See `TableEvaluator`.
    """

    def __init__(
        self,
        model: PersonalisedRewardModel,
        dataset: PreferenceDataset,
        feature_RF: Tensor,
        *,
        oracle: ScoreTable | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.feature_RF = model, feature_RF.float()
        super().__init__(dataset, model.texts.tables(dataset_texts(dataset), self.feature_RF), oracle=oracle, seed=seed)
        row = {key: number for number, key in enumerate(model.parts.response_keys)}
        self.known_R = np.array([row.get(key, -1) for key in response_keys(dataset)], dtype=np.int64)

    def users(self, limit: int | None = None) -> EmbeddedUsers:
        """See `TableEvaluator.users`."""
        dataset, parts = self.dataset, self.model.parts
        embedding = torch.zeros(len(dataset.user_ids), parts.user_UD.shape[1])
        known = np.zeros(len(dataset.user_ids), dtype=bool)
        row = {user: number for number, user in enumerate(parts.user_ids)}
        at = np.array([row.get(user, -1) for user in dataset.user_ids])
        inside = dataset.seen & (at >= 0)
        embedding[torch.from_numpy(inside)] = parts.user_UD[at[inside]]
        known[inside] = True
        rows = self._onboard_from(limit)
        users, number = np.unique(rows.user, return_inverse=True)
        if len(users):
            coded = Comparisons(number, rows.chosen, rows.rejected)
            embedding[torch.from_numpy(users)] = self.model.embed(coded, self.feature_RF, self.known_R, num_users=len(users))
            known[users] = True
        return EmbeddedUsers(embedding, known)


def dataset_texts(dataset: PreferenceDataset) -> list[Text]:
    """(prompt, response) of every response, in the data set's order."""
    return [(dataset.prompts[at], text) for at, text in zip(dataset.prompt_of_response, dataset.responses, strict=True)]


def response_keys(dataset: PreferenceDataset) -> list[str]:
    """The text key of each response with its prompt, as hex."""
    return [text_key(text).hex() for text in dataset_texts(dataset)]
