import numpy as np

from penchant.graph.neighbours import NeighbourIndex


def world(cap=512):
    random = np.random.default_rng(0)
    user_UD, response_RD = random.normal(size=(30, 5)), random.normal(size=(12, 5))
    user_UD /= np.linalg.norm(user_UD, axis=1, keepdims=True)
    user, chosen = random.integers(30, size=200), random.integers(10, size=200)
    return NeighbourIndex.build(user, chosen, user_UD, response_RD, cap=cap), user, chosen, user_UD, response_RD


def test_equals_the_papers_formula_on_dense_matrices():
    index, user, chosen, user_UD, response_RD = world()
    mine_chosen, mine_rejected = np.array([1, 4, 4]), np.array([2, 0, 3])
    is_neighbour = np.zeros(30, dtype=bool)
    is_neighbour[user[np.isin(chosen, mine_chosen)]] = True
    score = user_UD @ response_RD.T
    fit = np.log(1 / (1 + np.exp(-(score[:, mine_chosen] - score[:, mine_rejected])))).mean(1)
    weight = np.where(is_neighbour, np.exp(fit / 0.07), 0)
    expected = (weight / weight.sum()) @ user_UD
    assert np.allclose(index.embed(mine_chosen, mine_rejected), expected / np.linalg.norm(expected), atol=1e-6)


def test_nobody_chose_it():
    index, *_ = world()
    assert index.embed(np.array([11]), np.array([0])) is None


def test_cap_bounds_the_neighbours_of_a_popular_response():
    index, *_ = world(cap=3)
    assert len(index.neighbours(np.array([1]))) == 3
