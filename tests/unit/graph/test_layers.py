import math

import numpy as np
import pytest
import torch

from penchant.graph.collectives import Collective
from penchant.graph.layers import LAYERS, CoplLayer
from penchant.graph.mixture import MixtureLayer, choice_likelihoods
from penchant.graph.preference_graph import PreferenceShard, messages

U, R, C, D = 6, 8, 30, 4


@pytest.fixture
def graph():
    random = np.random.default_rng(0)
    columns = random.integers(U, size=C), random.integers(R, size=C), random.integers(R, size=C)
    shard = PreferenceShard.build(*columns, np.arange(C), first_user=0, num_users=U, num_responses=R)
    visible = torch.from_numpy((random.random(C) < 0.7).astype(np.float64))
    return messages(shard, Collective(), positive=visible, negative=visible, dtype=torch.float64)


def embeddings():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (U, R)]


def attention(layer, weights, sign, receiver, sender, to_users):
    """Softmax weights of each edge, node by node, as GAT's paper writes them."""
    user, response = weights.edges.user, weights.edges.response.long()
    at, sent_from = (user, response) if to_users else (response, user)
    sent = layer.neighbour[sign](sender)
    logit = torch.nn.functional.leaky_relu(
        receiver[at] @ layer.attention[sign, 0] + sent[sent_from] @ layer.attention[sign, 1], 0.2
    )
    share = torch.zeros_like(logit)
    for node in at.unique():
        rows = (at == node) & (weights.visible > 0)
        share[rows] = torch.softmax(logit[rows], 0)
    return share, sent


@pytest.mark.parametrize("kind", [*LAYERS, "copl with a neighbour projection"])
def test_fused_equals_edge_by_edge(graph, kind):
    torch.manual_seed(1)
    layer = (LAYERS[kind](D) if kind in LAYERS else CoplLayer(D, neighbour_projection=True)).double()
    user_UD, response_RD = embeddings()
    fused_user, fused_response = layer(user_UD, response_RD, graph)
    sums = []
    for to_users in (True, False):
        for sign, weights in enumerate((graph.positive, graph.negative)):
            ends = torch.stack([weights.edges.response.long(), weights.edges.user])
            edge_index, x = (ends, (response_RD, user_UD)) if to_users else (ends.flip(0), (user_UD, response_RD))
            weight = weights.symmetric
            if kind == "sage":
                degree = weights.user_degree if to_users else weights.response_degree
                weight = weights.visible / degree[edge_index[1]].clamp(min=1)
            if kind == "gat":
                weight, sent = attention(layer, weights, sign, x[1], x[0], to_users)
                total = torch.zeros(x[1].shape, dtype=torch.float64)
                sums.append(total.index_add(0, edge_index[1], weight[:, None] * sent[edge_index[0]]))
                continue
            sums.append(layer.propagate(edge_index, x=x, weight=weight, sign=sign, size=(len(x[0]), len(x[1]))))
    assert torch.allclose(fused_user, layer.update_node(user_UD, sums[0], sums[1]))
    assert torch.allclose(fused_response, layer.update_node(response_RD, sums[2], sums[3]))


def test_copl_by_hand():
    """One user who chose response 0 over response 1: equation by equation."""
    layer = CoplLayer(2).double()
    shard = PreferenceShard.build(
        np.array([0]), np.array([0]), np.array([1]), np.array([0]), first_user=0, num_users=1, num_responses=2
    )
    user, response = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[3.0, -1.0], [0.5, 2.0]]).double()
    own, plus, minus = layer.own.weight, layer.interaction[0].weight, layer.interaction[1].weight
    expected = own @ user[0] + (response[0] + plus @ (response[0] * user[0])) - (response[1] + minus @ (response[1] * user[0]))
    got = layer.forward_users(user, response, messages(shard, Collective(), dtype=torch.float64))
    assert torch.allclose(got[0], torch.nn.functional.leaky_relu(expected, 0.2))


def test_mixture_is_bayes_rule_comparison_by_comparison(graph):
    torch.manual_seed(1)
    shard, rejection = graph.shard, graph.positive.visible.roll(3)  # edge dropout hides either end of a comparison
    graph = messages(shard, Collective(), positive=graph.positive.visible, negative=rejection, dtype=torch.float64)
    layer = MixtureLayer(D).double()
    user_UD, response_RD = embeddings()
    posterior_UD, reward_RD = layer(user_UD, response_RD, graph)
    for user in range(U):
        weight = [math.exp(value) for value in user_UD[user].tolist()]
        for edge in range(C):
            seen = graph.positive.visible[edge] > 0 and graph.negative.visible[edge] > 0
            if graph.positive.edges.user[edge] == user and seen:
                chosen, rejected = (reward_RD[sign.edges.response[edge]].tolist() for sign in (graph.positive, graph.negative))
                weight = [w / (1 + math.exp(no - yes)) for w, yes, no in zip(weight, chosen, rejected, strict=True)]
        assert posterior_UD[user].tolist() == pytest.approx([w / sum(weight) for w in weight])
    assert torch.equal(layer.forward_users(user_UD, response_RD, graph), posterior_UD)
    assert torch.equal(layer.update_node(response_RD, 0 * response_RD, 0 * response_RD), reward_RD)


def test_gradient_of_the_likelihoods(graph, monkeypatch):
    monkeypatch.setattr("penchant.graph.sparse._CHUNK_ELEMENTS", 7 * D)  # several pieces
    ends = graph.positive.edges, graph.negative.edges, graph.positive.visible
    _, response_RD = embeddings()
    assert torch.autograd.gradcheck(lambda reward_RD: choice_likelihoods(*ends, reward_RD, U), (response_RD.requires_grad_(),))
