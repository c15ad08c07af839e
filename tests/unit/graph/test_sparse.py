import pytest
import torch

from penchant.graph.sparse import Edges, aggregate_to_responses, aggregate_to_users, edge_dots

U, R, E, D = 7, 9, 40, 5


@pytest.fixture
def edges():
    generator = torch.Generator().manual_seed(0)
    user = torch.sort(torch.randint(U, (E,), generator=generator))[0]
    return Edges.build(user, torch.randint(R, (E,), generator=generator), U, R)


def tensors():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in ((E,), (U, D), (R, D))]


def dense(edges, weight):
    # Summed into a matrix edge by edge: parallel edges add up.
    return torch.zeros(U, R, dtype=torch.float64).index_put((edges.user, edges.response.long()), weight, accumulate=True)


def test_products_equal_a_dense_matrix(edges):
    weight, user, response = tensors()
    assert torch.allclose(aggregate_to_users(edges, weight, response), dense(edges, weight) @ response)
    assert torch.allclose(aggregate_to_responses(edges, weight, user), dense(edges, weight).T @ user)
    assert torch.allclose(edge_dots(edges, user, response), (user[edges.user] * response[edges.response.long()]).sum(1))


def test_gradients(edges):
    weight, user, response = tensors()
    assert torch.autograd.gradcheck(lambda w, r: aggregate_to_users(edges, w, r), (weight, response))
    assert torch.autograd.gradcheck(lambda w, u: aggregate_to_responses(edges, w, u), (weight, user))
    assert torch.autograd.gradcheck(lambda u, r: edge_dots(edges, u, r), (user, response))


def test_degrees(edges):
    weight = torch.rand(E, dtype=torch.float64)
    user, response = edges.degrees(weight)
    assert torch.allclose(user, dense(edges, weight).sum(1))
    assert torch.allclose(response, dense(edges, weight).sum(0))


def test_edges_must_be_sorted_by_user():
    with pytest.raises(ValueError, match="sorted"):
        Edges.build(torch.tensor([1, 0]), torch.tensor([0, 0]), 2, 1)
