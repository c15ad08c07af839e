"""The service as Ray Serve runs it: `Api` in front of autoscaled `Scorer` replicas, one hop between them.

penchant serve --bundle runs/demo/bundle          # on this machine
serve deploy serve/service.yaml                   # on a cluster, through `build`
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from penchant.config import validate_settings
from penchant.errors import PenchantError
from penchant.runtime.serving.api import make_app
from penchant.runtime.serving.config import ServiceSettings
from penchant.runtime.serving.engine import Knowledge, Onboarding, Place, ScoreAnswer, ScoreRequest, ScoringEngine
from penchant.runtime.serving.measures import Measures
from penchant.runtime.serving.service import Busy, Service, Unavailable
from penchant.scoring.model import PersonalisedRewardModel, TextComparison
from penchant.scoring.questions import Question
from penchant.store import UserStore

_API_CPUS = 0.1


class ScorerReplica:
    """Holds the model. Requests that wait together are scored together, whoever they are for."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = validate_settings(ServiceSettings, settings)
        scorer = self.settings.scorer
        torch.set_num_threads(max(1, int(scorer.num_cpus)))
        device = "cuda" if scorer.num_gpus and torch.cuda.is_available() else "cpu"
        model = PersonalisedRewardModel.load(self.settings.bundle, remembered_texts=scorer.remembered_texts, device=device)
        self.engine = ScoringEngine(model)
        self.engine.check()
        # One thread at a time: the caches are not shared, and torch has its own threads.
        self._turn = asyncio.Lock()
        self._score_batch.set_max_batch_size(scorer.max_batch_size)  # type: ignore[attr-defined]

    async def _alone(self, work: Any, *arguments: Any) -> Any:
        """Runs the engine in a thread, so that health checks are answered meanwhile."""
        async with self._turn:
            return await asyncio.to_thread(work, *arguments)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0)
    async def _score_batch(self, requests: list[ScoreRequest]) -> list[ScoreAnswer]:
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


class ScorerHandle:
    """The replicas through Ray Serve's handle: see `penchant.runtime.serving.service.Scorer`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self.handle = handle

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self.handle, method).remote(*arguments)
        except BackPressureError:
            raise Busy("Too many requests are waiting.", where="scorer", fix="Try again after Retry-After seconds.") from None
        except PenchantError:
            raise
        except (DeploymentUnavailableError, RayServeException, RayError) as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, PenchantError):
                raise cause from None
            logging.getLogger(__name__).warning("a replica could not answer: %s", type(error).__name__)
            raise Unavailable("No replica could answer.", where="scorer", fix="Try again after Retry-After seconds.") from None

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """See `ScoringEngine.score`."""
        answer: ScoreAnswer = await self._call("score", request)
        return answer

    async def onboard(self, before: Knowledge, choices: Sequence[TextComparison], new: int) -> Onboarding:
        """See `ScoringEngine.onboard`."""
        onboarding: Onboarding = await self._call("onboard", before, choices, new)
        return onboarding

    async def question(self, choices: Sequence[TextComparison]) -> tuple[str, Question | None]:
        """The bundle, and see `ScoringEngine.question`."""
        answer: tuple[str, Question | None] = await self._call("question", choices)
        return answer

    async def place(self, known: Knowledge) -> Place | None:
        """See `ScoringEngine.place`."""
        place: Place | None = await self._call("place", known)
        return place

    async def describe(self) -> dict[str, Any]:
        """See `ScoringEngine.describe`."""
        described: dict[str, Any] = await self._call("describe")
        return described


@serve.ingress()
class ApiReplica:
    """The HTTP API over the store and the replicas."""

    def __init__(self, scorer: DeploymentHandle, settings: dict[str, Any]) -> None:
        self.settings = validate_settings(ServiceSettings, settings)
        _log_with_serve()
        self.store = UserStore.open(self.settings.store)
        self.service = Service(self.settings, self.store, ScorerHandle(scorer), Measures())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self.service)


def _log_with_serve() -> None:
    """What the library logs goes where Serve's own lines of this replica go."""
    library = logging.getLogger("penchant")
    library.handlers, library.propagate = logging.getLogger("ray.serve").handlers, False
    library.setLevel(logging.INFO)


def build(settings: dict[str, Any] | ServiceSettings) -> serve.Application:
    """The application for these settings: what `serve deploy` imports.

    Raises:
        ConfigError: A key is unknown, or a value cannot be used.
    """
    checked = settings if isinstance(settings, ServiceSettings) else validate_settings(ServiceSettings, settings)
    scorer, values = checked.scorer, checked.model_dump(mode="json")
    # The API logs each request itself, without ids; Serve's own access log would say it again.
    quiet = LoggingConfig(enable_access_log=False)
    scorers = serve.deployment(
        name="Scorer",
        autoscaling_config=checked.autoscaling(),
        max_ongoing_requests=2 * scorer.max_batch_size,
        max_queued_requests=scorer.max_queued_requests,
        ray_actor_options={"num_cpus": scorer.num_cpus, "num_gpus": scorer.num_gpus},
        logging_config=quiet,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10,
    )(ScorerReplica)
    api = serve.deployment(
        name="Api",
        num_replicas=checked.api_replicas,
        max_ongoing_requests=256,
        max_queued_requests=1024,
        ray_actor_options={"num_cpus": _API_CPUS},
        logging_config=quiet,
        graceful_shutdown_timeout_s=10,
    )(ApiReplica)
    return api.bind(scorers.bind(values), values)
