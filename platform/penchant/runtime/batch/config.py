"""Settings of batch work."""

from __future__ import annotations

from pydantic import Field

from penchant.config import Settings


class BatchSettings(Settings):
    """Who does the work, and in what portions. None of it changes a result."""

    num_workers: int | None = Field(None, ge=1)
    """Workers, each with a model of its own; by default one for each GPU, or one for each machine where there is no GPU."""
    threads: int | None = Field(None, ge=1)
    """Threads of each worker; by default the cores of its machine that are free at the start, shared among the workers there."""
    use_gpu: bool | None = None
    """By default, whether the cluster has a GPU."""
    wait_seconds: float = Field(0.0, ge=0)
    """How long to wait for an autoscaled cluster to bring the workers that `num_workers` asks for, or one."""
    rows_per_part: int = Field(8192, ge=1)
    """Rows that a worker reads, works on and writes at once: what it holds in memory, and what an interruption costs it."""
    remembered_texts: int = Field(16_384, ge=0)
    """Texts that a worker keeps encoded, should they come again in another part."""
