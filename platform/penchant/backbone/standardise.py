"""Standardisation of feature vectors, kept with the model that was trained on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """`(x - mean) / deviation` for each of F features; a constant feature becomes 0."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("scale", torch.ones(feature_dim))

    def fit(self, feature_NF: Tensor) -> None:
        """Takes mean and standard deviation from these texts."""
        deviation, mean = torch.std_mean(feature_NF.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), torch.zeros_like(deviation)))

    def forward(self, feature_NF: Tensor) -> Tensor:
        """Standardised features: (N, F)."""
        return (feature_NF.to(self.mean.dtype) - self.mean) * self.scale
