"""The cost model finds planted costs, says when it cannot, and its extrapolation is the arithmetic that it states."""

from importlib import import_module

import numpy as np
import pytest


@pytest.fixture
def cost():
    return import_module("_cost")


def graph(users):
    """Edges and nodes at two densities, a fifth as many responses."""
    return [(2 * count * per_user, 1.2 * count) for count in users for per_user in (4, 16)]


def test_it_finds_planted_costs_and_predicts_a_larger_graph(cost):
    planted = cost.CostModel(0.02, 3e-9, 8e-8)
    random = np.random.default_rng(0)
    sizes = graph((10_000, 100_000, 1_000_000))
    measured = [planted(*size) * (1 + 0.01 * random.normal()) for size in sizes]
    found = cost.fit(*zip(*sizes, strict=True), measured)
    for name in ("constant", "edge", "node"):
        assert getattr(found, name) == pytest.approx(getattr(planted, name), rel=0.1)
    assert found(*graph((10_000_000,))[1]) == pytest.approx(planted(*graph((10_000_000,))[1]), rel=0.1)


def test_small_sizes_count_as_much_as_large_ones(cost):
    planted = cost.CostModel(0.5, 1e-9, 1e-8)
    sizes = graph((1_000, 10_000_000, 100_000_000))
    measured = [planted(*size) for size in sizes]
    measured[-1] *= 1.05  # an error of more seconds than the constant
    assert cost.fit(*zip(*sizes, strict=True), measured).constant == pytest.approx(0.5, rel=0.1)


def test_no_cost_is_below_zero(cost):
    sizes = graph((1_000, 10_000, 100_000))
    found = cost.fit(*zip(*sizes, strict=True), [1e-8 * edges for edges, _ in sizes])
    assert found.edge == pytest.approx(1e-8)
    assert min(found.constant, found.node) >= 0


def test_sizes_in_one_proportion_are_refused(cost):
    with pytest.raises(ValueError, match="apart"):
        cost.fit([100, 1_000, 10_000], [50, 500, 5_000], [1.0, 2.0, 3.0])


def test_a_cost_of_zero_is_refused(cost):
    with pytest.raises(ValueError, match="zero"):
        cost.fit(*zip(*graph((10, 100)), strict=True), [0.0, 1.0, 2.0, 3.0])


def test_one_worker_exchanges_nothing_and_holds_everything(cost):
    model, size = cost.CostModel(1.0, 1e-9, 0.0), cost.CostModel(0.0, 10.0, 100.0)
    graph_size = {"users": 1_000, "responses": 200, "comparisons": 16_000, "dim": 4, "layers": 1}
    alone = cost.extrapolate(model, size, cost.Hardware(1, 1.0, 1.0), **graph_size)
    assert alone["exchange, s"] == 0
    assert alone["computation, s"] == pytest.approx(1.0 + 32_000e-9)
    assert alone["GiB a worker"] == pytest.approx((320_000 + 120_000) / 2**30)
    assert alone["it fits"] == "yes"


def test_four_workers_divide_users_and_repeat_responses(cost):
    size = cost.CostModel(0.0, 10.0, 100.0)
    graph_size = {"users": 1_000, "responses": 200, "comparisons": 16_000, "dim": 4, "layers": 1}
    found = cost.extrapolate(size, size, cost.Hardware(4, 1e-4, 2.0), **graph_size)
    assert found["GiB a worker"] * 2**30 == pytest.approx(10 * 8_000 + 100 * (250 + 200))
    assert found["it fits"] == "no"  # 125,000 bytes, of 107,374
    # 2 signs x 1 layer x 2 x 200 x 4 of sums, 2 x 200 degrees, 200 x 4 rows and 3 maps of 16, 2 numbers; 4 bytes; a ring of 4.
    sent = 4 * (3_200 + 400 + 800 + 48 + 2) * 1.5
    assert found["exchange, s"] == pytest.approx(sent / 2e9)
