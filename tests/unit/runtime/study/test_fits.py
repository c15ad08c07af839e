"""How fits lie side by side on the machines of a cluster."""

import pytest

from penchant.runtime.study import fits


@pytest.mark.parametrize(
    ("machines", "at_once", "gpus", "threads"),
    [
        ([{"CPU": 8}], 3, 0.0, 2),
        ([{"CPU": 2}, {"CPU": 2}], 1, 0.0, 2),
        ([{"CPU": 8}, {"CPU": 2}], 2, 0.0, 4),
        ([{"CPU": 3}, {"CPU": 3}, {"CPU": 3}], 4, 0.0, 1),
        ([{"CPU": 16}, {"CPU": 4}, {}], 2, 0.0, 8),
        ([{"CPU": 32}, {"CPU": 4, "GPU": 2}], 2, 1.0, 2),
        ([{"CPU": 12, "GPU": 1}], 3, 1 / 3, 4),
        ([{"CPU": 8, "GPU": 2}], 3, 2 / 3, 4),
        ([{"CPU": 2}], 5, 0.0, 1),
        ([], 2, 0.0, 1),
    ],
)
def test_a_fit_asks_for_no_more_cores_than_one_machine_has_for_it(machines, at_once, gpus, threads, monkeypatch):
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    monkeypatch.setattr(fits.ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64}}])
    assert fits._threads(at_once, gpus) == threads
