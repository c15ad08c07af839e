"""Embedding users and responses that were not in training, by a forward pass (text and shared inits only).

The responses of training keep the embeddings they had before each layer; a new user's messages come from these. So adding a
user costs a pass over that user's own edges alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from penchant.graph.collectives import Collective
from penchant.graph.encoder import GraphEncoder
from penchant.graph.layers import PreferenceLayer
from penchant.graph.preference_graph import Messages, PreferenceShard, SignedWeights, inverse_root


@torch.no_grad()
def embed_responses(encoder: GraphEncoder, feature_NF: Tensor) -> Tensor:
    """Embeddings of responses that nobody has judged, before the first layer and after each: (num_layers + 1, N, D).

    Features (N, F) are not standardised.
    Without edges a layer sees the node's own embedding alone. Their free row, where the encoder has one, is 0.
    """
    own: Tensor = encoder.project(encoder.standardise(feature_NF))
    nothing = torch.zeros_like(own)
    layers = [own]
    for layer in encoder.layers:
        assert isinstance(layer, PreferenceLayer)
        own = layer.update_node(own, nothing, nothing)
        layers.append(own)
    return torch.stack(layers)


@torch.no_grad()
def embed_users(
    encoder: GraphEncoder,
    response_layers: Tensor,
    response_degree: Tensor,
    user: np.ndarray,
    chosen: np.ndarray,
    rejected: np.ndarray,
    *,
    num_users: int,
) -> Tensor:
    """Normalised embeddings (num_users, D) of new users from aligned comparisons (C,): new user's number, response rows.

    Args:
        response_layers: (num_layers + 1, R, D), as training left them (and `embed_responses` for fresh ones).
        response_degree: (2, R): edges of each sign in training; 0 for fresh responses.
    """
    shard = PreferenceShard.build(
        user,
        chosen,
        rejected,
        np.arange(len(user)),
        first_user=0,
        num_users=num_users,
        num_responses=response_layers.shape[1],
    )
    signs = []
    for edges, degree in zip((shard.positive, shard.negative), response_degree, strict=True):
        visible = torch.ones(len(user))
        user_degree, _ = edges.degrees(visible)
        # As if the new edge had been in training: the response has one edge more.
        symmetric = inverse_root(user_degree)[edges.user] * inverse_root(degree + 1)[edges.response]
        signs.append(SignedWeights(edges, visible, symmetric, user_degree, degree))
    graph = Messages(shard, signs[0], signs[1], Collective())
    user_UD = encoder.initial_users(num_users)
    for layer, response_RD in zip(encoder.layers, response_layers, strict=False):
        assert isinstance(layer, PreferenceLayer)
        user_UD = layer.forward_users(user_UD, response_RD, graph)
    return functional.normalize(user_UD, dim=1)
