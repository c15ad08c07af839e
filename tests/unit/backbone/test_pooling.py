import pytest
import torch

from penchant.backbone.pooling import pool


def batch(side):
    """Three texts of 4, 2 and 1 tokens, padded on a side; a token's vector is its number."""
    hidden, mask = torch.zeros(3, 4, 1), torch.zeros(3, 4, dtype=torch.long)
    for row, length in enumerate((4, 2, 1)):
        at = slice(0, length) if side == "right" else slice(4 - length, 4)
        hidden[row, at, 0] = torch.arange(1, length + 1).float()
        mask[row, at] = 1
    hidden[mask == 0] = 99.0  # what a model says of padding must not matter
    return hidden, mask


@pytest.mark.parametrize("side", ["right", "left"])
def test_pooling_reads_the_mask_on_either_side(side):
    hidden, mask = batch(side)
    assert pool(hidden, mask, ["last"]).flatten().tolist() == [4, 2, 1]
    assert pool(hidden, mask, ["first"]).flatten().tolist() == [1, 1, 1]
    assert pool(hidden, mask, ["mean"]).flatten().tolist() == [2.5, 1.5, 1.0]
    assert pool(hidden, mask, ["mean", "first"]).shape == (3, 2)


def test_last_token_where_pad_is_also_the_end_of_sequence():
    """The published code searches for pad: with pad = eos it would stop at a text's own end, or at an eos inside it."""
    eos = 2
    tokens = torch.tensor([[5, 6, eos, 7], [5, eos, eos, eos]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    hidden = tokens.unsqueeze(-1).float() + torch.arange(4).view(1, 4, 1) * 10
    assert pool(hidden, mask, ["last"]).flatten().tolist() == [37, 12]


def test_unknown_pooling():
    with pytest.raises(ValueError, match="no pooling 'max'"):
        pool(*batch("right"), ["max"])
