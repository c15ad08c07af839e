"""VPL: variational preference learning (Poddar et al., arXiv 2408.10075).

An encoder reads a user's comparisons and says what taste they may have, `q(z | comparisons) = N(m, s^2)`; a reward reads text and
taste, `r(x, z)`. Training makes the negative evidence lower bound least (the paper's ELBO):
`-E_q log sigmoid(r(chosen, z) - r(rejected, z)) + b KL(q || N(0, 1))`. The encoder is the authors': a network over each pair, one
layer of self-attention over the pairs, their mean. A user, seen or new, is `m`: no optimisation.

Here a comparison is explained from the user's others alone, or the encoder would be told the answer.

Shapes: M comparisons that are read of a user, C some of them, P of all users of a batch, T distinct texts of these, L latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from penchant.config import Settings
from penchant.methods.method import Choices, Method, Shapes
from penchant.reward.config import HeadSettings

_USERS_AT_ONCE = 256
_WEIGHTS_AT_ONCE = 2**22
"""Attention weights that are held at once, of all users together: 16 MiB, and as much again for each step of the softmax."""


class VPLSettings(Settings):
    """A variational encoder over a user's comparisons."""

    name: Literal["vpl"] = "vpl"
    latent: int = Field(64, ge=1)
    """Width of z, and of what the encoder makes of a pair."""
    hidden: int = Field(64, ge=1)
    """Width of the hidden layers of encoder and reward."""
    context: int = Field(16, ge=1)
    """Comparisons of a user that the encoder reads in a training step, drawn anew each time; afterwards it reads all."""
    kl_weight: float = Field(1e-2, ge=0)
    """b, the authors' default."""


class VPL(Method):
    """See the module."""

    def __init__(self, settings: VPLSettings, shapes: Shapes, head: HeadSettings) -> None:
        super().__init__(shapes, head)
        self.settings = settings
        hidden, latent = settings.hidden, settings.latent
        self.read_pair = nn.Linear(2 * shapes.features, hidden)
        self.pair = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, latent),
        )
        self.query, self.key, self.value = (nn.Linear(latent, latent) for _ in range(3))
        self.mean, self.log_variance = nn.Linear(latent, latent), nn.Linear(latent, latent)
        # The reward's first layer reads text and z side by side; the text's part is computed once for all users.
        self.read_text, self.read_taste = nn.Linear(shapes.features, hidden), nn.Linear(latent, hidden, bias=False)
        self.reward = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Dropout(head.dropout),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1, bias=False),
        )

    def hidden(self, feature_NF: Tensor) -> Tensor:
        """See `RewardHead.hidden`."""
        return self.read_text(self.standardise(feature_NF))

    def score(self, hidden_NH: Tensor, user_ND: Tensor | None) -> Tensor:
        """See `RewardHead.score`; without a user, of the prior's mean."""
        taste = 0.0 if user_ND is None else self.read_taste(user_ND)
        return self.reward(hidden_NH + taste)[..., 0]

    def encode(self, choices: Choices, row_NM: Tensor, there_NM: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (N, L) of the taste behind each line of comparisons; where none is there, the prior's."""
        # A text is in many pairs of a batch: `read_pair` reads each text once, and a pair adds up what it made of its two.
        place_2P = torch.stack([choices.chosen, choices.rejected])[:, row_NM[there_NM]]
        text, place_2P = place_2P.unique(return_inverse=True)
        text_TF = self.standardise(choices.feature_RF[text])
        as_chosen_TH, as_rejected_TH = (text_TF @ weight.T for weight in self.read_pair.weight.chunk(2, dim=1))
        read_PH = as_chosen_TH.index_select(0, place_2P[0]) + as_rejected_TH.index_select(0, place_2P[1]) + self.read_pair.bias
        pair_NML = read_PH.new_zeros(*row_NM.shape, self.settings.latent)
        pair_NML[there_NM] = self.pair(read_PH)
        count_N1 = there_NM.sum(1, keepdim=True)
        heard_NL = self._hear(pair_NML, there_NM) / count_N1.clamp(min=1)
        any_N1 = (count_N1 > 0).float()
        return self.mean(heard_NL) * any_N1, self.log_variance(heard_NL).clamp(-10, 10) * any_N1

    def _hear(self, pair_NML: Tensor, there_NM: Tensor) -> Tensor:
        """What the pairs of a line hear of each other, summed over those that are there: (N, L).

        A pair hears on its own, so some are done after the others: all weights of somebody with 30,000 would take 3.6 GB.
        """
        key_NLM, value_NML = self.key(pair_NML).transpose(1, 2), self.value(pair_NML)
        size = max(1, _WEIGHTS_AT_ONCE // max(1, there_NM.numel()))
        heard_NL = pair_NML.new_zeros(len(pair_NML), self.settings.latent)
        for query_NCL, there_NC in zip(self.query(pair_NML).split(size, dim=1), there_NM.split(size, dim=1), strict=True):
            weight_NCM = query_NCL @ key_NLM / math.sqrt(self.settings.latent)
            # Not to minus infinity: a line without any comparison would become nan, in its gradient too.
            weight_NCM = weight_NCM.masked_fill(~there_NM[:, None], -1e9).softmax(-1)
            heard_NL = heard_NL + ((weight_NCM @ value_NML) * there_NC[..., None]).sum(1)
        return heard_NL

    def posterior(self, choices: Choices, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (N, L) of the users of these comparisons, from some of their others."""
        order, start = choices.by_user()
        user = choices.user[rows]
        most = int((start[1:] - start[:-1])[user].max())
        at_NM = start[user][:, None] + torch.arange(most, device=rows.device)
        there_NM = at_NM < start[user + 1][:, None]
        row_NM = order[at_NM.clamp(max=len(order) - 1)]
        there_NM &= row_NM != rows[:, None]
        if most > self.settings.context:
            drawn = torch.where(there_NM, torch.rand(there_NM.shape, device=rows.device), -1.0)
            picked = drawn.topk(self.settings.context, dim=1).indices
            row_NM, there_NM = row_NM.gather(1, picked), there_NM.gather(1, picked)
        return self.encode(choices, row_NM, there_NM)

    def loss(self, choices: Choices, rows: Tensor) -> Tensor:
        """See the module."""
        mean_NL, log_variance_NL = self.posterior(choices, rows)
        taste_NL = mean_NL + (0.5 * log_variance_NL).exp() * torch.randn_like(mean_NL)
        surprise = 0.5 * (mean_NL.square() + log_variance_NL.exp() - 1 - log_variance_NL).sum()
        return self.settings.kl_weight * surprise - functional.logsigmoid(self.margin(choices, rows, taste_NL)).sum()

    @torch.no_grad()
    def new_vectors(self, choices: Choices) -> Tensor:
        """See `Method.new_vectors`."""
        order, start = choices.by_user()
        count_U = start[1:] - start[:-1]
        mean_UL = self.mean.weight.new_zeros(choices.num_users, self.settings.latent)
        for users, most in _batches(count_U):
            at_NM = start[users][:, None] + torch.arange(most, device=users.device)
            there_NM = at_NM < start[users + 1][:, None]
            row_NM = order[at_NM.clamp(max=max(0, len(order) - 1))] if len(order) else torch.zeros_like(at_NM)
            mean_UL[users] = self.encode(choices, row_NM, there_NM)[0]
        return mean_UL


def _batches(count_U: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Users who are encoded together, and the most comparisons that one of them has, at least 1.

    Those who have the most come first, each beside others like them, so that few lines are padding.
    """
    users = count_U.argsort(descending=True, stable=True)
    start = 0
    while start < len(users):
        most = max(1, int(count_U[users[start]]))
        stop = start + min(_USERS_AT_ONCE, max(1, _WEIGHTS_AT_ONCE // most**2))
        yield users[start:stop], most
        start = stop
