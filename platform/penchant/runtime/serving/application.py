"""The service as Ray Serve runs it: `Api` in front of autoscaled `Scorer` replicas, one hop between them.

penchant serve --bundle runs/demo/bundle          # on this machine
serve deploy serve/service.yaml                   # on a cluster, through `build`
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from penchant.artifacts import Manifest
from penchant.config import validate_settings
from penchant.errors import ArtifactError, ConfigError
from penchant.runtime.serving.api import make_app
from penchant.runtime.serving.config import ScorerSettings, ServiceSettings
from penchant.runtime.serving.engine import Knowledge, Onboarding, Place, ScoreAnswer, ScoreRequest, ScoringEngine
from penchant.runtime.serving.handles import CanaryScorer, ScorerHandle
from penchant.runtime.serving.measures import Measures
from penchant.runtime.serving.service import Scorer, Service
from penchant.scoring.model import PersonalisedRewardModel, TextComparison
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
        torch.set_num_threads(max(1, int(scorer.num_cpus)))
        device = "cuda" if scorer.num_gpus and torch.cuda.is_available() else "cpu"
        model = PersonalisedRewardModel.load(folder, remembered_texts=scorer.remembered_texts, device=device)
        self.engine = ScoringEngine(model)
        if self.engine.bundle != name:
            what = f"The folder holds bundle {self.engine.bundle}; {name} is served."
            raise ArtifactError(what, where=folder, fix="Roll the other one in: penchant roll --bundle.")
        self.engine.check()
        # One thread at a time: the caches are not shared, and torch has its own threads.
        self._turn = asyncio.Lock()
        self._score_batch.set_max_batch_size(scorer.max_batch_size)  # type: ignore[attr-defined]

    async def check_health(self) -> None:
        """Called by Serve now and then: a replica that cannot score is replaced."""
        await self._alone(self.engine.check)

    async def _alone(self, work: Any, *arguments: Any) -> Any:
        """Runs the engine in a thread, so that requests are taken in meanwhile and scored together next."""
        async with self._turn:
            return await asyncio.to_thread(work, *arguments)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0)
    async def _score_batch(self, requests: list[ScoreRequest]) -> list[ScoreAnswer]:
        if not self._turn.locked() and self.engine.is_quick(requests):
            return self.engine.score(requests)  # takes less time than handing it to a thread
        answers: list[ScoreAnswer] = await self._alone(self.engine.score, requests)
        return answers

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """See `ScoringEngine.score`."""
        answer: ScoreAnswer = await self._score_batch(request)  # type: ignore[arg-type, assignment]
        return answer

    async def onboard(self, before: Knowledge, choices: Sequence[TextComparison], new: int) -> Onboarding:
        """See `ScoringEngine.onboard`."""
        onboarding: Onboarding = await self._alone(lambda: self.engine.onboard(before, choices, new=new))
        return onboarding

    async def question(self, choices: Sequence[TextComparison]) -> tuple[str, Question | None]:
        """The bundle, and see `ScoringEngine.question`."""
        return self.engine.bundle, await self._alone(self.engine.question, choices)

    async def place(self, known: Knowledge) -> Place | None:
        """See `ScoringEngine.place`."""
        place: Place | None = await self._alone(self.engine.place, known)
        return place

    async def describe(self) -> dict[str, Any]:
        """See `ScoringEngine.describe`."""
        return self.engine.describe()


@serve.ingress()
class ApiReplica:
    """The HTTP API over the store and the replicas."""

    def __init__(self, settings: dict[str, Any], stable: DeploymentHandle, canary: DeploymentHandle | None = None) -> None:
        self._settings = validate_settings(ServiceSettings, settings)
        _log_with_serve()
        check_store(self._settings.store, nodes=sum(node["Alive"] for node in ray.nodes()))
        scorer: Scorer = ScorerHandle(stable)
        if canary is not None and self._settings.canary is not None:
            scorer = CanaryScorer(scorer, ScorerHandle(canary), self._settings.canary.share)
        self.service = Service(self._settings, UserStore.open(self._settings.store), scorer, Measures())

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
    folders = {"Scorer": checked.bundle} | ({"Canary": checked.canary.bundle} if checked.canary is not None else {})
    handles = [
        _scorer_deployment(name, checked.scorer, common).bind(folder, Manifest.read(local_copy(folder)).name, values["scorer"])
        for name, folder in folders.items()
    ]
    api = serve.deployment(
        name="Api",
        num_replicas=checked.api_replicas,
        max_ongoing_requests=256,
        max_queued_requests=1024,
        ray_actor_options={"num_cpus": _API_CPUS},
        **common,
    )(ApiReplica)
    return api.bind(values, *handles)


def _scorer_deployment(name: str, scorer: ScorerSettings, common: dict[str, Any]) -> serve.Deployment:
    return serve.deployment(
        name=name,
        autoscaling_config=scorer.autoscaling(),
        max_ongoing_requests=2 * scorer.max_batch_size,
        max_queued_requests=scorer.max_queued_requests,
        ray_actor_options={"num_cpus": scorer.num_cpus, "num_gpus": scorer.num_gpus},
        health_check_period_s=10,
        max_constructor_retry_count=2,
        **common,
    )(ScorerReplica)
