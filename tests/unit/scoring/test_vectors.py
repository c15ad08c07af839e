import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.scoring.vectors import VectorCache


def rows_of(keys, asked=None):
    def compute(positions):
        if asked is not None:
            asked.extend(keys[position] for position in positions)
        return torch.tensor([[float(keys[position]), -float(keys[position])] for position in positions])

    return compute


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=12))
def test_every_look_up_gives_the_rows_of_its_keys_within_the_bound(capacity, calls):
    cache = VectorCache(capacity)
    for keys in calls:
        rows = cache.look_up(keys, rows_of(keys))
        assert rows.tolist() == [[float(key), -float(key)] for key in keys]
        assert len(cache) <= capacity


def test_a_key_is_computed_once_and_repeats_within_a_call_too():
    cache, asked = VectorCache(4), []
    cache.look_up([1, 2, 1], rows_of([1, 2, 1], asked))
    cache.look_up([2, 3, 1], rows_of([2, 3, 1], asked))
    assert asked == [1, 2, 3]
    assert (cache.hits, cache.misses) == (2, 4)


def test_the_least_recently_used_goes_first():
    cache, asked = VectorCache(2), []
    for keys in ([1], [2], [1], [3], [1], [2]):
        cache.look_up(keys, rows_of(keys, asked))
    assert asked == [1, 2, 3, 2], "1 was used again before 3 came, so 2 had to go"


def test_it_grows_to_a_large_capacity_only_as_it_is_filled():
    cache = VectorCache(10_000_000)
    keys = list(range(3000))
    cache.look_up(keys, rows_of(keys))
    assert len(cache._rows) < 10_000
    again = cache.look_up(keys[::-1], lambda missing: pytest.fail("all are there"))
    assert np.array_equal(again[:, 0].numpy(), np.arange(3000)[::-1])
