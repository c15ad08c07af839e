"""From a sequence of hidden states to one vector, by the attention mask.

Shapes: B texts, T tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pool(hidden_BTH: Tensor, mask_BT: Tensor, poolings: Sequence[str]) -> Tensor:
    """The poolings concatenated: (B, H * len(poolings)).

    The last token is the last one that the mask keeps, on whichever side the padding is: searching for the pad token
    instead breaks where pad is also the end-of-sequence token.
    """
    mask_BT = mask_BT.to(torch.bool)
    position_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    row_B = torch.arange(len(mask_BT), device=mask_BT.device)
    vectors = []
    for pooling in poolings:
        if pooling == "mean":
            kept = mask_BT.unsqueeze(-1).to(hidden_BTH.dtype)
            vectors.append((hidden_BTH * kept).sum(1) / kept.sum(1).clamp(min=1))
        elif pooling == "first":
            vectors.append(hidden_BTH[row_B, mask_BT.int().argmax(1)])
        elif pooling == "last":
            vectors.append(hidden_BTH[row_B, torch.where(mask_BT, position_T, 0).argmax(1)])
        else:
            raise ValueError(f"There is no pooling {pooling!r}: mean, first or last.")
    return torch.cat(vectors, dim=-1)
