"""What this machine does at most, measured: a large matrix product, and a large copy."""

from dataclasses import dataclass

import torch
from _device import timed


@dataclass(frozen=True)
class Peaks:
    """The machine's own limits."""

    operations: float
    """A second, of a square matrix product; a multiplication and an addition are two."""
    bandwidth: float
    """Bytes a second that a copy reads and writes."""

    def bound(self, operations: float, moved: float) -> float:
        """The fewest seconds that so many operations and so many bytes can take (Williams et al., 2009: the roofline)."""
        return max(operations / self.operations, moved / self.bandwidth)


def matmul_rate(device: str, dtype: torch.dtype, size: int | None = None, rounds: int = 5) -> float:
    """Operations a second of the best of some products."""
    size = size or (8192 if device == "cuda" else 2048)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: left @ right, device) for _ in range(rounds + 1))


def copy_rate(device: str, size: int | None = None, rounds: int = 5) -> float:
    """Bytes a second, read and written, of the best of some copies that no cache holds."""
    size = size or (2**31 if device == "cuda" else 2**28)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(timed(lambda: target.copy_(source), device) for _ in range(rounds + 1))


def measure_peaks(device: str, dtype: torch.dtype) -> Peaks:
    return Peaks(matmul_rate(device, dtype), copy_rate(device))
