"""Settings of the service."""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field

from penchant.config import Settings


def default_store() -> str:
    """The user store that `PENCHANT_STORE` names, or a file under runs/."""
    return os.environ.get("PENCHANT_STORE") or "sqlite:///runs/service/users.db"


class LimitSettings(Settings):
    """What one request may ask for; more is refused with 413 or 422, before any work."""

    body_bytes: int = Field(1_048_576, ge=1024)
    """Bytes of a request's body."""
    text_characters: int = Field(20_000, ge=1)
    """Characters of a prompt or response."""
    responses: int = Field(256, ge=1)
    """Responses scored in one request."""
    comparisons: int = Field(64, ge=1)
    """Comparisons sent in one request."""
    comparisons_per_user: int = Field(500, ge=1)
    """A user's newest comparisons that the onboarding reads; older ones are kept for the next fit."""
    body_seconds: float = Field(10, gt=0)
    """Time that a client may take to send a body."""


class ScorerSettings(Settings):
    """The replicas that hold the model."""

    min_replicas: int = Field(1, ge=1)
    """Replicas when there is little to do."""
    max_replicas: int = Field(4, ge=1)
    """Replicas at most."""
    target_ongoing_requests: float = Field(8, gt=0)
    """Requests in work at a replica, on average, above which replicas are added."""
    max_queued_requests: int = Field(256, ge=1)
    """Requests that may wait for a replica; more are answered 429 with Retry-After."""
    upscale_delay_s: float = Field(5, ge=0)
    """Seconds of too much work before a replica is added."""
    downscale_delay_s: float = Field(120, ge=0)
    """Seconds of too little work before one is taken away."""
    max_batch_size: int = Field(64, ge=1)
    """Requests that are scored together, whoever they are for."""
    num_cpus: float = Field(1, ge=0)
    """Cores of a replica."""
    num_gpus: float = Field(0, ge=0)
    """GPUs of a replica; may be a fraction."""
    remembered_texts: int = Field(20_000, ge=0)
    """Texts that a replica keeps encoded, under each expert."""

    def autoscaling(self) -> dict[str, Any]:
        """Ray Serve's `autoscaling_config`."""
        return {
            "min_replicas": self.min_replicas,
            "max_replicas": max(self.min_replicas, self.max_replicas),
            "target_ongoing_requests": self.target_ongoing_requests,
            "upscale_delay_s": self.upscale_delay_s,
            "downscale_delay_s": self.downscale_delay_s,
        }


class CanarySettings(Settings):
    """A second bundle, tried on some of the users before it takes the place of the first."""

    bundle: str
    """Its folder, or a URI of one."""
    share: float = Field(0.1, gt=0, lt=1)
    """Share of the users whom it answers: always the same ones."""


class ServiceSettings(Settings):
    """The service."""

    bundle: str
    """The bundle's folder, or a URI of one (s3://bucket/path)."""
    canary: CanarySettings | None = None
    """Another bundle for some of the users."""
    store: str = Field(default_factory=default_store)
    """The user store: sqlite:///path, or postgresql://user@host/database; by default what PENCHANT_STORE says, where a password
    is better kept than in a file."""
    tenant: str = Field("default", min_length=1, max_length=64)
    """Whom the bundle was trained for: its seen users are known to this tenant's keys alone."""
    api_replicas: int = Field(1, ge=1)
    """Replicas of the HTTP API."""
    scorer: ScorerSettings = ScorerSettings()
    """The scoring replicas."""
    limits: LimitSettings = LimitSettings()
    """What a request may ask for."""
    playground: bool = True
    """Whether the page at / is served."""
