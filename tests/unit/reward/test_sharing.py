import pytest
import torch

from penchant.reward.mole.routing import Gate, Route, Routing
from penchant.reward.mole.sharing import distinct_sequences

USERS, DIM, EXPERTS = 7, 6, 4


def routing(user_B, *, straight_through=True, top_k=1):
    torch.manual_seed(0)
    users = torch.nn.functional.normalize(torch.randn(USERS, DIM), dim=1)
    gate = Gate(DIM, 16, EXPERTS)
    route = gate(users, noise=0.0, temperature=0.1, top_k=top_k, straight_through=straight_through)
    return Routing({(gate, "default"): route}, user_B), route


def test_users_of_one_route_share_a_text():
    text, user = torch.randint(5, (40,)), torch.randint(USERS, (40,))
    asked, route = routing(user)
    found = distinct_sequences(text, asked, routes_are_few=True)
    wanted = {(int(t), int(route.expert[u, 0])) for t, u in zip(text, user, strict=True)}
    assert len(found.text) == len(wanted)
    answered = found.routing.routes[next(iter(asked.routes))]
    for t, u, sequence in zip(text, user, found.asking, strict=True):
        assert found.text[sequence] == t
        assert answered.expert[found.routing.user_index[sequence], 0] == route.expert[u, 0]
    assert torch.allclose(answered.weight, torch.ones_like(answered.weight))


def test_each_user_of_a_shared_sequence_gets_an_equal_part_of_its_gradient():
    expert, weight = torch.tensor([[2], [2], [1]]), torch.ones(3, 1, requires_grad=True)
    asked = Routing({(torch.nn.Identity(), "a"): Route(expert, weight, torch.full((3, 4), 0.25))}, torch.tensor([0, 1, 2, 0]))
    found = distinct_sequences(torch.tensor([0, 0, 0, 1]), asked, routes_are_few=True)
    assert found.text.tolist() == [0, 0, 1]
    answered = next(iter(found.routing.routes.values()))
    (answered.weight[:, 0] * torch.tensor([10.0, 100.0, 1000.0])).sum().backward()
    # Sequences: text 0 by expert 1 (user 2), text 0 by expert 2 (users 0 and 1), text 1 by expert 2 (user 0).
    assert weight.grad[:, 0].tolist() == [1050.0, 50.0, 10.0]


@pytest.mark.parametrize("values", [{"straight_through": False}, {"top_k": 2}])
def test_where_weights_differ_a_route_is_a_users_own(values):
    text, user = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 0, 1])
    asked, _ = routing(user, **values)
    found = distinct_sequences(text, asked, routes_are_few=False)
    assert found.text.tolist() == [0, 0, 1]
    assert found.routing.user_index.tolist() == [0, 1, 1]
    assert found.asking.tolist() == [0, 1, 0, 2]


def test_what_everyone_reads_is_read_once_and_by_the_shared_expert_alone():
    user = torch.arange(USERS)
    asked, route = routing(user)
    everyone = torch.tensor([True] * 4 + [False] * 3)
    found = distinct_sequences(torch.zeros(USERS, dtype=torch.long), asked, routes_are_few=True, everyone_B=everyone)
    answered = next(iter(found.routing.routes.values()))
    assert len(set(found.asking[:4].tolist())) == 1
    assert answered.weight[found.asking[0]] == 0
    assert len(found.text) == 1 + len(set(route.expert[4:, 0].tolist()))
    assert torch.allclose(answered.weight[found.asking[4:]], torch.ones(3, 1))


def test_without_routes_a_text_is_encoded_once():
    found = distinct_sequences(torch.tensor([3, 1, 3]), None, routes_are_few=False)
    assert found.text.tolist() == [1, 3]
    assert found.asking.tolist() == [1, 0, 1]
    assert found.routing is None


def test_a_gate_that_starts_as_clusters_sends_users_to_their_centre():
    centres = torch.nn.functional.normalize(torch.randn(EXPERTS, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    gate = Gate(DIM, 16, EXPERTS)
    gate.start_as_clusters(centres)
    users = torch.nn.functional.normalize(torch.randn(50, DIM), dim=1)
    route = gate(users, noise=0.0, temperature=1.0, top_k=1, straight_through=True)
    assert torch.equal(route.expert[:, 0], (users @ centres.T).argmax(1))
    gate.start_as_clusters(centres[:2])
    assert set(gate(users, noise=0.0, temperature=1.0, top_k=1, straight_through=True).expert[:, 0].tolist()) <= {0, 1, 2, 3}
