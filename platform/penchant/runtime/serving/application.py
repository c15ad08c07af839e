"""The service as Ray Serve runs it: `Api` in front of autoscaled `Scorer` and `Generator` replicas, one hop between them.

To run it::

    penchant serve --bundle runs/demo/bundle          # on this machine
    serve deploy serve/service.yaml                   # on a cluster, through `build`
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from penchant.adapters.applying import AdapterPool, grouped_model
from penchant.adapters.bases import load_task_base
from penchant.adapters.config import TaskBaseSettings
from penchant.adapters.store import AdapterStore
from penchant.artifacts import Manifest
from penchant.config import validate_settings
from penchant.data.choices import TextComparison
from penchant.errors import ArtifactError, ConfigError
from penchant.runtime.serving.api import make_app
from penchant.runtime.serving.chat.engine import GenerationEngine
from penchant.runtime.serving.chat.events import Event, GenerationRequest, Generator
from penchant.runtime.serving.chat.vllm import VllmHandle, vllm_deployment
from penchant.runtime.serving.config import GeneratorSettings, LimitSettings, ReplicaSettings, ScorerSettings, ServiceSettings
from penchant.runtime.serving.engine import Knowledge, Onboarding, Place, ScoreAnswer, ScoreRequest, ScoringEngine, pieces
from penchant.runtime.serving.handles import CanaryScorer, GeneratorHandle, ScorerHandle
from penchant.runtime.serving.measures import Measures
from penchant.runtime.serving.service import NoScorer, Scorer, Service
from penchant.runtime.serving.turn import Turn
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.questions import Question
from penchant.storage import local_copy
from penchant.store import UserStore

_API_CPUS = 0.1


class ScorerReplica:
    """Holds the model. Requests that wait together are scored together, whoever they are for.

    It starts only if the bundle passes its self-test, so while a new bundle rolls in, a bad one takes nobody's place.
    """

    def __init__(self, folder: str, name: str, settings: dict[str, Any]) -> None:
        scorer = validate_settings(ScorerSettings, settings)
        device = _prepare_device(scorer)
        model = PersonalisedRewardModel.load(folder, remembered_texts=scorer.remembered_texts, device=device)
        self.engine = ScoringEngine(model)
        if self.engine.bundle != name:
            what = f"The folder holds bundle {self.engine.bundle}; {name} is served."
            raise ArtifactError(what, where=folder, fix="Roll the other one in: penchant roll --bundle.")
        self.engine.check()
        # One thread at a time: the caches are not shared, and torch has its own threads. Requests are taken in meanwhile, and
        # scored together next.
        self._turn = Turn()
        self._score_batch.set_max_batch_size(scorer.max_batch_size)  # type: ignore[attr-defined]

    async def check_health(self) -> None:
        """Called by Serve now and then: a replica that cannot score is replaced.

        One at work scores. If it were asked behind all that waits there, a busy replica would be taken for a dead one.
        """
        self._turn.check()
        if not self._turn.taken:
            await self._turn.run(self.engine.check)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0)
    async def _score_batch(self, requests: list[ScoreRequest]) -> list[ScoreAnswer]:
        if not self._turn.taken and self.engine.is_quick(requests):
            return self.engine.score(requests)  # takes less time than handing it to a thread
        answers: list[ScoreAnswer] = []
        for piece in pieces(requests):
            answers += await self._turn.run(self.engine.score, piece)
        return answers

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """See `ScoringEngine.score`."""
        answer: ScoreAnswer = await self._score_batch(request)  # type: ignore[arg-type, assignment]
        return answer

    async def onboard(self, before: Knowledge, choices: Sequence[TextComparison], new: int) -> Onboarding:
        """See `ScoringEngine.onboard`."""
        onboarding: Onboarding = await self._turn.run(lambda: self.engine.onboard(before, choices, new=new))
        return onboarding

    async def question(self, choices: Sequence[TextComparison]) -> tuple[str, Question | None]:
        """The bundle, and see `ScoringEngine.question`."""
        return self.engine.bundle, await self._turn.run(self.engine.question, choices)

    async def place(self, known: Knowledge) -> Place | None:
        """See `ScoringEngine.place`."""
        place: Place | None = await self._turn.run(self.engine.place, known)
        return place

    async def describe(self) -> dict[str, Any]:
        """See `ScoringEngine.describe`."""
        return self.engine.describe()


class GeneratorReplica:
    """Holds the base and adapters. Chats are written side by side, whoever they are for, and join and leave as they come."""

    def __init__(self, settings: dict[str, Any], limits: dict[str, Any]) -> None:
        generator = validate_settings(GeneratorSettings, settings)
        _log_with_serve()
        store = AdapterStore.open(generator.adapters)
        base = TaskBaseSettings(name=generator.base, revision=generator.revision, answers="text", precision=generator.precision)
        model, tokenizer = load_task_base(base, _prepare_device(generator))
        pool = AdapterPool(grouped_model(model, store, slots=generator.adapters_in_memory), store)
        self.engine = GenerationEngine(pool, tokenizer, generator, validate_settings(LimitSettings, limits))
        self.engine.check()

    async def check_health(self) -> None:
        """Called by Serve now and then: a replica that does not go on is replaced."""
        self.engine.check_alive()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[Event]]:
        """See `GenerationEngine.generate`."""
        async with aclosing(self.engine.generate(request)) as several:  # type: ignore[type-var]
            async for events in several:
                yield events

    async def forget(self, user: str) -> bool:
        """See `GenerationEngine.forget`."""
        return await self.engine.forget(user)

    async def check(self) -> None:
        """See `GenerationEngine.check_alive`."""
        self.engine.check_alive()


@serve.ingress()
class ApiReplica:
    """The HTTP API over the store and the replicas."""

    def __init__(
        self,
        settings: dict[str, Any],
        stable: DeploymentHandle | None,
        canary: DeploymentHandle | None,
        generator: DeploymentHandle | None,
    ) -> None:
        self._settings = validate_settings(ServiceSettings, settings)
        _log_with_serve()
        check_store(self._settings.store, nodes=sum(node["Alive"] for node in ray.nodes()))
        scorer: Scorer = ScorerHandle(stable) if stable is not None else NoScorer()
        if canary is not None and self._settings.canary is not None:
            scorer = CanaryScorer(scorer, ScorerHandle(canary), self._settings.canary.share)
        store = UserStore.open(self._settings.store)
        self.service = Service(self._settings, store, scorer, Measures(), _writer(self._settings.generator, generator))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self.service)

    async def settings(self) -> dict[str, Any]:
        """What the service was built from: what a roll starts with."""
        return self._settings.model_dump(mode="json")


def check_store(url: str, *, nodes: int) -> None:
    """Refuses a store that not every replica of the API would share.

    Raises:
        ConfigError: It is a file, and replicas may run on several nodes.
    """
    if nodes > 1 and url.startswith("sqlite"):
        raise ConfigError(
            f"SQLite is a file on one node, and this cluster has {nodes}.",
            where="store",
            fix="Use postgresql://user@host/database.",
        )


def _writer(settings: GeneratorSettings | None, handle: DeploymentHandle | None) -> Generator | None:
    if settings is None or handle is None:
        return None
    return GeneratorHandle(handle) if settings.backend == "penchant" else VllmHandle(handle, settings)


def _prepare_device(settings: ReplicaSettings) -> str:
    """Where a replica computes, with as many threads as it has cores."""
    torch.set_num_threads(max(1, int(settings.num_cpus)))
    return "cuda" if settings.num_gpus and torch.cuda.is_available() else "cpu"


def _log_with_serve() -> None:
    """What the library logs goes where Serve's own lines of this replica go."""
    library = logging.getLogger("penchant")
    library.handlers, library.propagate = logging.getLogger("ray.serve").handlers, False
    library.setLevel(logging.INFO)


def build(settings: dict[str, Any] | ServiceSettings) -> serve.Application:
    """The application for these settings: what `serve deploy` imports.

    Raises:
        ConfigError: A key is unknown, or a value cannot be used.
        ArtifactError: There is no bundle in a folder.
        StorageError: A URI cannot be reached.
    """
    checked = settings if isinstance(settings, ServiceSettings) else validate_settings(ServiceSettings, settings)
    values = checked.model_dump(mode="json")
    # Old replicas answer until new ones do.
    rolling = {"max_surge_percent": 100, "rolling_update_percentage": 1.0, "graceful_shutdown_timeout_s": 10}
    # The API logs each request itself, without ids; Serve's own access log would say it again.
    common: dict[str, Any] = {"logging_config": LoggingConfig(enable_access_log=False), **rolling}
    api = serve.deployment(
        name="Api",
        num_replicas=checked.api_replicas,
        max_ongoing_requests=256,
        max_queued_requests=1024,
        ray_actor_options={"num_cpus": _API_CPUS},
        **common,
    )(ApiReplica)

    def scorer(name: str, folder: str | None) -> serve.Application | None:
        if folder is None:
            return None
        deployed = _deployment(name, checked.scorer, 2 * checked.scorer.max_batch_size, common)(ScorerReplica)
        return deployed.bind(folder, Manifest.read(local_copy(folder)).name, values["scorer"])

    canary = checked.canary.bundle if checked.canary is not None else None
    return api.bind(values, scorer("Scorer", checked.bundle), scorer("Canary", canary), _generator(checked, values, common))


def _generator(settings: ServiceSettings, values: dict[str, Any], common: dict[str, Any]) -> serve.Application | None:
    """The writing replicas.

    Raises:
        ArtifactError: There is no store of adapters in the folder.
    """
    generator = settings.generator
    if generator is None:
        return None
    AdapterStore.open(generator.adapters)
    if generator.backend == "vllm":
        return vllm_deployment(generator)
    deployed = _deployment("Generator", generator, 2 * generator.rows, common)(GeneratorReplica)
    return deployed.bind(values["generator"], values["limits"])


def _deployment(name: str, settings: ReplicaSettings, ongoing: int, common: dict[str, Any]) -> Any:
    """A decorator, for the class of its replicas.

    Args:
        ongoing: Requests that a replica takes in at once.
    """
    return serve.deployment(
        name=name,
        autoscaling_config=settings.autoscaling(),
        max_ongoing_requests=ongoing,
        max_queued_requests=settings.max_queued_requests,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        health_check_period_s=10,
        max_constructor_retry_count=2,
        **common,
    )
