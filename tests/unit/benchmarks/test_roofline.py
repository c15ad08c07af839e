"""The formulas of operations against what PyTorch counts, and the bound."""

from importlib import import_module

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from penchant.reward.config import HeadSettings
from penchant.reward.heads import make_head


@pytest.fixture
def work():
    return import_module("_work")


def counted(call) -> int:
    """Operations of the matrix products of a call."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def test_head(work):
    texts, features, dim, hidden = 30, 20, 6, HeadSettings().hidden
    head = make_head(HeadSettings(), feature_dim=features, user_dim=dim).eval()
    products = counted(lambda: head(torch.randn(texts, features), torch.randn(texts, dim)))
    elementwise = 2 * texts * (features + hidden)  # standardising, and <P e_u, h>
    assert work.head(texts, features, hidden, dim).operations == products + elementwise


@pytest.mark.parametrize(("shared", "slices", "path"), [(8, 3, "mole_path"), (0, 4, "grouped_path")])
def test_layers(work, shared, slices, path):
    rows, tokens, width = 4, 5, 16
    roofline = import_module("roofline")
    roofline.EXPERTS, roofline.ADAPTERS = 3, 10
    call, found = getattr(roofline, path)(rows, tokens, width, "cpu", torch.float32)
    expected = work.low_rank_layer(rows, tokens, width, width, 8, slices, shared=shared)
    assert found == expected
    assert expected.operations == counted(call)
    weights = width * width + (slices * 8 + shared) * 2 * width
    assert expected.bytes == 4 * (2 * rows * tokens * width + weights)


def test_a_layer_there_and_back(work):
    roofline = import_module("roofline")
    roofline.EXPERTS = 3
    call, found = roofline.mole_training_path(4, 5, 16, "cpu", torch.float32)
    with FlopCounterMode(display=False) as counter:
        call()
    assert found.operations == counter.get_total_flops()


@pytest.mark.parametrize(
    ("path", "sizes", "tokens", "attended"), [("reading", (3, 7), 21, 3 * 49), ("decoding", ("tiny", 2, 9), 2, 2 * 10)]
)
def test_bases(work, path, sizes, tokens, attended):
    roofline = import_module("roofline")
    call, found = getattr(roofline, f"{path}_path")(*sizes, "cpu", torch.float32)
    model = roofline.minilm("cpu", torch.float32) if path == "reading" else roofline.decoder("tiny", "cpu", torch.float32)
    model.pooler = None
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    named = {name: parameter for name, parameter in model.named_parameters() if "embed" not in name}
    beside = sum(parameter.numel() for parameter in named.values() if parameter.dim() == 1)  # norms and biases: no products
    products = counted(call)  # PyTorch counts no attention on a CPU
    assert found.operations == products + 2 * tokens * beside + 4 * layers * width * attended
    kept = 2 * 9 * 2 * width if path == "decoding" else 0
    assert found.bytes == 4 * (sum(parameter.numel() for parameter in named.values()) + layers * (2 * tokens * width + kept))
    assert counted(call) == products  # a cache is as long as before


def test_aggregation_and_neighbours_count_what_they_touch_once(work):
    found = work.aggregation(edges=10, users=3, responses=2, dim=4)
    assert (found.operations, found.bytes) == (80, 4 * (8 + 10 + 12) + 4 * 13)
    found = work.neighbours(found=5, comparisons=2, dim=4)
    assert found.operations == 8 + 5 * (16 + 10 + 4 + 8)
    assert found.bytes == 4 * (20 + 16 + 4) + 20


def test_the_bound_is_the_slower_of_the_two():
    peaks = import_module("_peaks").Peaks(operations=100.0, bandwidth=10.0)
    assert peaks.bound(operations=200, moved=10) == 2.0
    assert peaks.bound(operations=10, moved=50) == 5.0
