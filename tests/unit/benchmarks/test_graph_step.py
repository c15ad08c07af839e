"""Peers of the graph stage's step have to do the same work."""

from importlib import import_module

import pytest
import torch

from penchant.graph import layers
from penchant.graph.layers import PreferenceLayer


@pytest.fixture
def steps(monkeypatch):
    module = import_module("_graph_step")
    monkeypatch.setattr(PreferenceLayer, "forward", PreferenceLayer.forward)  # each way sets these, and the test puts them back
    for name in ("aggregate_to_users", "aggregate_to_responses"):
        monkeypatch.setattr(layers, name, getattr(layers, name))
    return module


def test_every_way_gives_the_same_embeddings_and_gradients(steps):
    options = {"users": 60, "responses": 12, "per_user": 5, "dim": 8, "layers": 2, "device": "cpu", "optimization": {}}
    found = {}
    for way in steps.WAYS:
        trainer = steps.make_trainer(options | {"way": way})
        losses = [trainer.step() for _ in range(2)]
        found[way] = losses, trainer.encoder.user_rows.grad, trainer.encoder.user_rows.detach()
    assert len(found) == 4
    expected = found.pop(steps.FUSED)
    for way, (losses, gradient, rows) in found.items():
        assert losses == pytest.approx(expected[0], rel=1e-6), way
        torch.testing.assert_close(gradient, expected[1], rtol=1e-4, atol=1e-7, msg=way)
        torch.testing.assert_close(rows, expected[2], rtol=1e-3, atol=1e-5, msg=way)
