"""The graph encoder: from a preference graph to user and response embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from penchant.backbone.standardise import Standardise
from penchant.graph.config import EncoderSettings
from penchant.graph.layers import LAYERS, CoplLayer, PreferenceLayer
from penchant.graph.mixture import MixtureLayer
from penchant.graph.preference_graph import Messages
from penchant.graph.sampling import initial_rows


class GraphEncoder(nn.Module):
    """Users [first_user, first_user + num_users) of one worker, and all responses.

    Rows of users (`user_init: id`) belong to their worker alone; every other parameter is replicated. All parameters
    start from (seed, name), so that workers agree without exchanging them.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        *,
        num_users: int,
        num_responses: int,
        feature_dim: int = 0,
        first_user: int = 0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.standardise: Standardise
        self.num_users = num_users
        dim = settings.dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(_make_layer(settings) for _ in range(settings.num_layers))
            if settings.uses_text:
                self.standardise = Standardise(feature_dim)
                self.project = nn.Linear(feature_dim, dim)
            if settings.user_init == "shared":
                self.shared_user = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.to(dtype)
        if settings.user_init == "id":
            rows = initial_rows(first_user, first_user + num_users, dim, seed=seed, stream=1, dtype=dtype)
            self.user_rows = nn.Parameter(rows)
        if settings.response_init != "text":
            rows = initial_rows(0, num_responses, dim, seed=seed, stream=2, dtype=dtype)
            # Beside the text a row starts at zero: it says only what the text does not.
            self.response_rows = nn.Parameter(rows if settings.response_init == "id" else torch.zeros_like(rows))

    def replicated_parameters(self) -> list[nn.Parameter]:
        """Parameters that every worker holds, in one order: their gradients are summed over workers."""
        return [parameter for name, parameter in self.named_parameters() if name != "user_rows"]

    def initial_users(self, count: int | None = None) -> Tensor:
        """What users start from: (U, D)."""
        if self.settings.user_init == "id":
            return self.user_rows
        return self.shared_user.expand(self.num_users if count is None else count, -1)

    def initial_responses(self, feature_RF: Tensor | None) -> Tensor:
        """What responses start from: (R, D), from *standardised* features (R, F) and, where there are any, free rows."""
        if self.settings.response_init == "id":
            return self.response_rows
        assert feature_RF is not None
        projected = self.project(feature_RF)
        return projected if self.settings.response_init == "text" else projected + self.response_rows

    def forward(self, graph: Messages, feature_RF: Tensor | None) -> tuple[Tensor, Tensor]:
        """User (U, D) and response (R, D) embeddings, not normalised."""
        return self.all_layers(graph, feature_RF)[-1]

    def all_layers(self, graph: Messages, feature_RF: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """The embeddings before the first layer and after each: num_layers + 1 pairs of (U, D) and (R, D)."""
        user_UD, response_RD = self.initial_users(), self.initial_responses(feature_RF)
        pairs = [(user_UD, response_RD)]
        for layer in self.layers:
            user_UD, response_RD = layer(user_UD, response_RD, graph)
            pairs.append((user_UD, response_RD))
        return pairs


def _make_layer(settings: EncoderSettings) -> PreferenceLayer:
    if settings.layer == "copl":
        return CoplLayer(settings.dim, neighbour_projection=settings.neighbour_projection)
    if settings.layer == "mixture":
        return MixtureLayer(settings.dim)
    return LAYERS[settings.layer](settings.dim)
