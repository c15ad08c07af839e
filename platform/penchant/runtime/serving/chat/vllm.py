"""vLLM in place of Penchant's own loop: its engine through `ray.serve.llm`, each user's adapter by dynamic multi-LoRA.

The configuration is made from the service's settings and from the store. vLLM fetches adapters from a bucket, which holds the
store's `adapters` folder. The store itself says, in the API, who has an adapter.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from penchant.adapters.store import AdapterStore
from penchant.errors import ConfigError
from penchant.runtime.serving.chat.events import Ended, Event, Finish, GenerationRequest, KeyNeeded, Piece, Started
from penchant.runtime.serving.config import GeneratorSettings
from penchant.runtime.serving.handles import explained
from penchant.runtime.serving.service import Unavailable

log = logging.getLogger(__name__)

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM makes room for."""


def vllm_config(settings: GeneratorSettings, store: AdapterStore) -> dict[str, Any]:
    """What `ray.serve.llm.LLMConfig` is made from.

    Raises:
        ConfigError: The settings are not for vLLM, or the adapters are of a kind or rank that it does not take.
    """
    vllm = settings.vllm
    if vllm is None:
        raise ConfigError("There are no settings of vLLM.", where="generator.vllm", fix="Set generator.vllm.adapters_uri.")
    kind, rank = store.config["peft_type"], store.config.get("r", 0)
    if kind != "LORA" or rank > _RANKS[-1]:
        what = f"vLLM takes LoRA up to rank {_RANKS[-1]}; the adapters are {kind}" + (f" of rank {rank}." if rank else ".")
        raise ConfigError(what, where="generator.backend", fix="Use backend: penchant.")
    engine = {
        "enable_lora": True,
        "max_lora_rank": next(each for each in _RANKS if each >= rank),
        "max_loras": settings.rows,
        "max_cpu_loras": settings.adapters_in_memory,
        "max_num_seqs": settings.rows,
        "max_model_len": vllm.max_model_len,
        "dtype": settings.precision,
        **({"revision": settings.revision} if settings.revision is not None else {}),
    }
    return {
        "model_loading_config": {"model_id": settings.model, "model_source": settings.base},
        "lora_config": {
            "dynamic_lora_loading_path": vllm.adapters_uri,
            "max_num_adapters_per_replica": settings.adapters_in_memory,
        },
        "engine_kwargs": engine | vllm.engine,
        "deployment_config": {
            "autoscaling_config": settings.autoscaling(),
            "max_ongoing_requests": 2 * settings.rows,
            "max_queued_requests": settings.max_queued_requests,
        },
    }


def vllm_deployment(settings: GeneratorSettings) -> serve.Application:
    """vLLM's replicas.

    Raises:
        ConfigError: vLLM is not installed, or cannot serve these adapters.
    """
    config = vllm_config(settings, AdapterStore.open(settings.adapters))
    if importlib.util.find_spec("vllm") is None:
        fix = "pip install 'ray[llm]' vllm on every node, which need GPUs, or use backend: penchant."
        raise ConfigError("vLLM is not installed.", where="generator.backend", fix=fix)
    from ray.serve.llm import LLMConfig, build_llm_deployment

    return build_llm_deployment(LLMConfig(**config))


def model_of(settings: GeneratorSettings, store: AdapterStore, user: str) -> str:
    """How vLLM is told which adapter: the model's name and the adapter's folder under `adapters_uri`."""
    return f"{settings.model}:{store.place(user).relative_to(store.folder / 'adapters')}"


class VllmHandle:
    """vLLM's replicas as the API sees them: see `penchant.runtime.serving.chat.events.Generator`.

    Args:
        handle: Of the deployment.
        settings: Model, and folder of the store.
    """

    def __init__(self, handle: DeploymentHandle, settings: GeneratorSettings) -> None:
        self.handle, self.settings = handle, settings
        self.store = AdapterStore.open(settings.adapters)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[Event]]:
        """See `GenerationEngine.generate`. What vLLM refuses is `Unavailable`; it does not tell damaged adapters apart."""
        own = bool(request.user) and request.user in self.store
        if own and self.store.card(request.user).encrypted:
            fix = "Use backend: penchant, or import the adapter without a key."
            raise KeyNeeded("vLLM cannot open encrypted adapters.", where="generator.backend", fix=fix)
        model = model_of(self.settings, self.store, request.user) if own else self.settings.model
        chosen: dict[str, Any] = {"multiplexed_model_id": model} if own else {}
        handle: Any = self.handle.options(stream=True, **chosen)
        began, first, collected = time.perf_counter(), 0.0, []
        with explained("generator"):
            async for part in handle.chat.remote(self._body(request, model), None):
                events: list[Event] = []
                for chunk in _chunks(part):
                    if not first:
                        first = time.perf_counter()
                        read = chunk["usage"]["prompt_tokens"]
                        events.append(Started("own" if own else "task", self.store.fingerprint[:16], "vllm", read))
                    events += _pieces(chunk)
                collected += events
                if request.stream and events:
                    yield events
        ended = Ended(time.perf_counter() - began, first - began, 1, 0, 0)
        yield [ended] if request.stream else [*collected, ended]

    async def forget(self, user: str) -> bool:
        """Deletes a user's adapter from the store; the bucket is not reached from here."""
        return self.store.delete(user)

    async def check(self) -> None:
        """Whether a replica answers."""
        with explained("generator"):
            await self.handle.check_health.remote()

    def _body(self, request: GenerationRequest, model: str) -> Any:
        from ray.serve.llm.openai_api_models import ChatCompletionRequest  # is vLLM's own

        return ChatCompletionRequest(
            model=model,
            messages=list(request.messages),
            n=request.candidates,
            max_tokens=request.max_tokens or self.settings.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=list(request.stop),
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )


def _pieces(chunk: dict[str, Any]) -> list[Event]:
    """What a chunk says, with the tokens of its candidate so far."""
    pieces: list[Event] = []
    for choice in chunk["choices"]:
        reason = choice["finish_reason"]
        finish: Finish | None = None if reason is None else "length" if reason == "length" else "stop"
        text = choice["delta"].get("content") or ""
        pieces.append(Piece(choice["index"], text, chunk["usage"]["completion_tokens"], finish))
    return pieces


def _chunks(part: Any) -> Iterator[dict[str, Any]]:
    """OpenAI's chunks in what a replica sends: server-sent events, several at a time."""
    for said in part if isinstance(part, list) else [part]:
        if not isinstance(said, str):
            log.warning("vLLM refused a request: %s", type(said).__name__)
            raise Unavailable("vLLM refused the request.", where="generator", fix="See the log of its replica.")
        for line in said.splitlines():
            content = line.removeprefix("data: ")
            if content == line or content == "[DONE]":
                continue
            chunk = json.loads(content)
            if "error" in chunk:
                raise Unavailable("vLLM could not go on.", where="generator", fix="See the log of its replica.")
            if chunk["choices"]:
                yield chunk
