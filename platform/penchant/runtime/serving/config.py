"""Settings of the service."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field, model_validator

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
    messages: int = Field(256, ge=1)
    """Messages of a chat."""
    prompt_tokens: int = Field(4096, ge=1)
    """Tokens of a chat's prompt."""
    generated_tokens: int = Field(1024, ge=1)
    """Tokens that may be asked for as `max_tokens`."""
    candidates: int = Field(16, ge=1)
    """Answers that may be asked for as `n`."""


class ReplicaSettings(Settings):
    """Replicas of a model: how many, and on what."""

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
    num_cpus: float = Field(1, ge=0)
    """Cores of a replica."""
    num_gpus: float = Field(0, ge=0)
    """GPUs of a replica; may be a fraction."""

    def autoscaling(self) -> dict[str, Any]:
        """Ray Serve's `autoscaling_config`."""
        return {
            "min_replicas": self.min_replicas,
            "max_replicas": max(self.min_replicas, self.max_replicas),
            "target_ongoing_requests": self.target_ongoing_requests,
            "upscale_delay_s": self.upscale_delay_s,
            "downscale_delay_s": self.downscale_delay_s,
        }


class ScorerSettings(ReplicaSettings):
    """The replicas that hold the reward model."""

    max_batch_size: int = Field(64, ge=1)
    """Requests that are scored together, whoever they are for."""
    remembered_texts: int = Field(20_000, ge=0)
    """Texts that a replica keeps encoded, under each expert."""


class VllmSettings(Settings):
    """vLLM's engine, which needs a GPU, the package `vllm` and adapters in a bucket."""

    adapters_uri: str
    """Where the store's `adapters` folder is, for vLLM: s3://, gs:// or abfss://, kept in step with the store."""
    max_model_len: int = Field(8192, ge=1)
    """Tokens of a prompt and its answer."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's engine, such as {tensor_parallel_size: 2}."""


class GeneratorSettings(ReplicaSettings):
    """The replicas that write: a task-adapted base, and the adapters of users over it."""

    base: str
    """The base that the adapters were fitted over: a folder made by `save_pretrained`, or a model id of the hub."""
    revision: str | None = None
    """Revision of a hub model."""
    adapters: str
    """The folder of the adapters' store, as every node sees it."""
    model: str = Field("penchant", min_length=1, max_length=64, pattern=r"^[\w.-]+$")
    """Name of the model in requests and answers."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the base's pass; adapters are float32."""
    template: Literal["tokenizer", "plain"] = "tokenizer"
    """`tokenizer`: the tokenizer's own chat template, if it has one; `plain`: the texts alone, with a blank line between them,
    as `penchant adapters fit` reads prompts."""
    on_damaged: Literal["error", "task"] = "error"
    """For a user whose adapter cannot be read: an error, or the task model, and the answer says so."""
    max_tokens: int = Field(256, ge=1)
    """Tokens of an answer, where a request does not say."""
    rows: int = Field(64, ge=1)
    """Answers that are written side by side, whoever they are for."""
    adapters_in_memory: int = Field(256, ge=1)
    """Adapters that a replica keeps loaded; the one that was used longest ago makes room for another."""
    backend: Literal["penchant", "vllm"] = "penchant"
    """What writes: Penchant's own loop over transformers, or vLLM."""
    vllm: VllmSettings | None = None
    """vLLM's settings, with `backend: vllm`."""

    @model_validator(mode="after")
    def _whole(self) -> GeneratorSettings:
        if self.adapters_in_memory < self.rows:
            raise ValueError(f"adapters_in_memory must be at least rows, {self.rows}: every row may be another user's")
        if (self.backend == "vllm") != (self.vllm is not None):
            raise ValueError("backend: vllm and the settings vllm go together")
        if self.backend == "vllm" and self.template == "plain":
            raise ValueError("vLLM reads chats by the tokenizer's template; it has no template: plain")
        if self.backend == "vllm" and self.on_damaged == "task":
            raise ValueError("vLLM does not tell damaged adapters apart; it has no on_damaged: task")
        return self


class CanarySettings(Settings):
    """A second bundle, tried on some of the users before it takes the place of the first."""

    bundle: str
    """Its folder, or a URI of one."""
    share: float = Field(0.1, gt=0, lt=1)
    """Share of the users whom it answers: always the same ones."""


class ServiceSettings(Settings):
    """The service."""

    bundle: str | None = None
    """The bundle's folder, or a URI of one (s3://bucket/path). `null`: nothing is scored."""
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
    generator: GeneratorSettings | None = None
    """The writing replicas: /v1/chat/completions by each user's own adapter. `null`: none."""
    limits: LimitSettings = LimitSettings()
    """What a request may ask for."""
    playground: bool = True
    """Whether the page at / is served."""

    @model_validator(mode="after")
    def _whole(self) -> ServiceSettings:
        if self.bundle is None and self.generator is None:
            raise ValueError("there is nothing to serve: give a bundle, or generator.base and generator.adapters")
        if self.bundle is None and self.canary is not None:
            raise ValueError("a canary needs a bundle that the other users have")
        return self
