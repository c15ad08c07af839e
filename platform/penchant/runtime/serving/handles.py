"""The replicas as the API reaches them: through Ray Serve's handles, and divided between two bundles."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from penchant.data.choices import TextComparison
from penchant.errors import PenchantError
from penchant.runtime.serving.chat.events import Event, GenerationRequest
from penchant.runtime.serving.engine import Knowledge, Onboarding, Place, ScoreAnswer, ScoreRequest
from penchant.runtime.serving.service import Busy, Scorer, Unavailable
from penchant.scoring.questions import Question

log = logging.getLogger(__name__)


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """In the block, what Ray Serve raises, or gRPC below it, becomes `Busy`, `Unavailable` or what the replica raised.

    Args:
        where: Which replicas.
    """
    try:
        yield
    except BackPressureError:
        raise Busy("Too many requests are waiting.", where=where, fix="Try again after Retry-After seconds.") from None
    except PenchantError:
        raise
    except (DeploymentUnavailableError, RayServeException, RayError, grpc.RpcError) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, PenchantError):
            raise cause from None
        log.warning("a replica could not answer: %s", type(error).__name__)
        raise Unavailable("No replica could answer.", where=where, fix="Try again after Retry-After seconds.") from None


class ScorerHandle:
    """The replicas through Ray Serve's handle: see `penchant.runtime.serving.service.Scorer`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self.handle = handle

    async def _call(self, method: str, *arguments: Any) -> Any:
        with explained("scorer"):
            return await getattr(self.handle, method).remote(*arguments)

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """See `ScoringEngine.score`."""
        answer: ScoreAnswer = await self._call("score", request)
        return answer

    async def onboard(self, before: Knowledge, choices: Sequence[TextComparison], new: int) -> Onboarding:
        """See `ScoringEngine.onboard`."""
        onboarding: Onboarding = await self._call("onboard", before, choices, new)
        return onboarding

    async def question(self, user: str, choices: Sequence[TextComparison]) -> tuple[str, Question | None]:
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


class GeneratorHandle:
    """The writing replicas through Ray Serve's handle: see `penchant.runtime.serving.chat.events.Generator`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self.handle = handle

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[Event]]:
        """See `GenerationEngine.generate`."""
        with explained("generator"):
            responses: Any = self.handle.options(stream=True).generate.remote(request)
            try:
                async for events in responses:
                    yield events
            except (GeneratorExit, asyncio.CancelledError):
                responses.cancel()  # the client went away
                raise

    async def forget(self, user: str) -> bool:
        """See `GenerationEngine.forget`."""
        with explained("generator"):
            return bool(await self.handle.forget.remote(user))

    async def check(self) -> None:
        """Whether a replica answers."""
        with explained("generator"):
            await self.handle.check.remote()


class CanaryScorer:
    """Two bundles behind one `Scorer`: a share of the users is answered by the canary, always the same ones.

    Where the canary does not answer, the other one does.

    Args:
        stable: The replicas of the bundle that most users have.
        canary: Those of the bundle that is tried.
        share: Of the users, whom the canary answers.
        patience: Seconds that the canary has. When a canary is ended, its replicas go before the API's last requests to them do,
            and these would wait for ever.
    """

    def __init__(self, stable: Scorer, canary: Scorer, share: float, *, patience: float = 4.0) -> None:
        self.stable, self.canary, self.share, self.patience = stable, canary, share, patience

    def tries(self, user: str) -> bool:
        """Whether the canary answers this user; never a request without one."""
        point = int.from_bytes(hashlib.blake2b(user.encode(), digest_size=8).digest()) / 2**64
        return bool(user) and point < self.share

    async def _ask(self, user: str, method: str, *arguments: Any) -> Any:
        if self.tries(user):
            try:
                async with asyncio.timeout(self.patience):
                    return await getattr(self.canary, method)(*arguments)
            except (Busy, Unavailable, TimeoutError) as error:
                log.warning("the canary could not answer: %s", type(error).__name__)
        return await getattr(self.stable, method)(*arguments)

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """See `ScoringEngine.score`."""
        answer: ScoreAnswer = await self._ask(request.known.user, "score", request)
        return answer

    async def onboard(self, before: Knowledge, choices: Sequence[TextComparison], new: int) -> Onboarding:
        """See `ScoringEngine.onboard`."""
        onboarding: Onboarding = await self._ask(before.user, "onboard", before, choices, new)
        return onboarding

    async def question(self, user: str, choices: Sequence[TextComparison]) -> tuple[str, Question | None]:
        """The bundle, and see `ScoringEngine.question`."""
        answer: tuple[str, Question | None] = await self._ask(user, "question", user, choices)
        return answer

    async def place(self, known: Knowledge) -> Place | None:
        """See `ScoringEngine.place`."""
        place: Place | None = await self._ask(known.user, "place", known)
        return place

    async def describe(self) -> dict[str, Any]:
        """See `ScoringEngine.describe`, of the bundle that most users have."""
        return await self.stable.describe()
