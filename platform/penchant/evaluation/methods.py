"""What another method than Penchant's says of the test comparisons.

Shapes: R responses, F features, U users of training, D a user's vector.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from penchant.data import PreferenceDataset
from penchant.evaluation.evaluate import EmbeddedUsers, TableEvaluator
from penchant.methods.inputs import Attribute
from penchant.methods.method import Choices, Method
from penchant.reward.heads import RewardHead
from penchant.scoring.tables import FrozenTable


class MethodEvaluator(TableEvaluator):
    """Judges a method as a bundle's model is judged.

    Args:
        method: Trained, in eval mode.
        vector_UD: Of the users of training, in the data set's order of seen users.
        dataset: Unseen users get their vectors from their own comparisons, by the method's own onboarding.
        inputs_RF: What the method reads of the responses.
        uniform: The head beside it, which reads the first columns of that.
        oracle: The same with the true groups, where that was trained.
        attribute: What the method knows of all users.
        seed: See `TableEvaluator`.
    """

    def __init__(
        self,
        method: Method,
        vector_UD: Tensor,
        dataset: PreferenceDataset,
        inputs_RF: Tensor,
        *,
        uniform: RewardHead,
        oracle: RewardHead | None = None,
        attribute: Attribute | None = None,
        seed: int = 0,
    ) -> None:
        self.method, self.vector_UD, self.inputs_RF, self.attribute = method, vector_UD, inputs_RF, attribute
        feature_RF = inputs_RF[:, : method.shapes.features]
        tables = {
            "uniform": FrozenTable.from_features(uniform, feature_RF),
            "personalised": FrozenTable.from_features(method, inputs_RF),
        }
        oracle_table = None if oracle is None else FrozenTable.from_features(oracle, feature_RF)
        super().__init__(dataset, tables, oracle=oracle_table, seed=seed)

    def users(self, limit: int | None = None) -> EmbeddedUsers:
        """See `TableEvaluator.users`."""
        dataset = self.dataset
        rows = self._onboard_from(limit)
        new = np.flatnonzero(~dataset.seen)
        embedding = torch.zeros(len(dataset.user_ids), self.vector_UD.shape[1])
        embedding[torch.from_numpy(dataset.seen)] = self.vector_UD
        known = dataset.seen.copy()
        if len(new):
            choices = Choices(
                feature_RF=self.inputs_RF,
                user=torch.from_numpy(np.searchsorted(new, rows.user)),
                chosen=torch.from_numpy(rows.chosen),
                rejected=torch.from_numpy(rows.rejected),
                num_users=len(new),
                attribute_U=None if self.attribute is None else torch.from_numpy(self.attribute.code_U[new]),
            )
            embedding[torch.from_numpy(new)] = self.method.new_vectors(choices)
            known[rows.user if self.method.needs_choices else new] = True
        return EmbeddedUsers(embedding, known)
