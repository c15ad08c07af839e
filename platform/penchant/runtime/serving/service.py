"""What the endpoints do: between the store, which knows users, and the replicas, which know the bundle.

Every request asks the store first; one that the store has acknowledged is never lost. The replicas are asked once, or twice where
a new bundle has not seen the user's comparisons yet, or where two clients write to one user at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from penchant.data.choices import TextComparison
from penchant.errors import PenchantError, StoreError
from penchant.runtime.serving.chat.events import Ended, Event, GenerationRequest, Generator, Started
from penchant.runtime.serving.config import ServiceSettings
from penchant.runtime.serving.engine import Knowledge, Onboarding, Place, ScoreAnswer, ScoreRequest
from penchant.runtime.serving.measures import Measures
from penchant.scoring.model import Personalisation
from penchant.scoring.questions import Question
from penchant.store import KeyRecord, StoredComparison, UserRecord, UserStore, kept_comparisons

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
_MOST_UNSAVED = 64
"""Embeddings that wait to be saved, at most."""


class Busy(PenchantError, RuntimeError):
    """All replicas have as much to do as they may."""


class Unavailable(PenchantError, RuntimeError):
    """No replica can answer just now."""


class Absent(Unavailable):
    """The service was started without what would answer."""


class Scorer(Protocol):
    """The replicas, as the API sees them.

    Each method raises `Busy` where the queue is full, and `Unavailable` where there is no replica.
    """

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """See `ScoringEngine.score`."""

    async def onboard(self, before: Knowledge, choices: Sequence[TextComparison], new: int) -> Onboarding:
        """See `ScoringEngine.onboard`."""

    async def question(self, user: str, choices: Sequence[TextComparison]) -> tuple[str, Question | None]:
        """The bundle, and see `ScoringEngine.question`."""

    async def place(self, known: Knowledge) -> Place | None:
        """See `ScoringEngine.place`."""

    async def describe(self) -> dict[str, Any]:
        """See `ScoringEngine.describe`."""


class NoScorer:
    """In place of the replicas, in a service without a bundle: each method raises `Absent`."""

    def __getattr__(self, method: str) -> Any:
        async def absent(*_: Any) -> Any:
            raise Absent("This service has no bundle.", where="bundle", fix="Start it with penchant serve --bundle.")

        return absent


@dataclass(frozen=True)
class Acknowledged:
    """Comparisons that are stored."""

    version: int
    comparisons: int
    personalisation: Personalisation
    bundle: str | None
    replayed: bool
    seconds: float
    """Time that the model took."""


class Service:
    """The endpoints' work.

    Args:
        settings: Tenant and limits.
        store: The user store.
        scorer: The replicas.
        measures: What is counted.
        generator: The writing replicas, where there are any.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        store: UserStore,
        scorer: Scorer,
        measures: Measures,
        generator: Generator | None = None,
    ) -> None:
        self.settings, self.store, self.scorer, self.measures = settings, store, scorer, measures
        self.generator = generator
        self._unsaved: set[asyncio.Task[None]] = set()

    async def check(self) -> None:
        """Whether requests would be answered: the store takes writes, and replicas answer.

        Raises:
            StoreError: It does not.
            Unavailable: They do not.
        """
        await asyncio.to_thread(self.store.check)
        if self.settings.bundle is not None:
            await self.scorer.place(Knowledge(""))
        if self.generator is not None:
            await self.generator.check()

    async def score(self, tenant: str, user: str, prompt: str, responses: Sequence[str]) -> ScoreAnswer:
        """A user's scores of responses; nobody's where the user id is empty."""
        known, record = await self._knowledge(tenant, user)
        answer = await self._ask(ScoreRequest(known, prompt, tuple(responses)))
        if answer.needs_choices:
            choices = await self._choices(tenant, user)
            answer = await self._ask(ScoreRequest(_with_choices(known, choices), prompt, tuple(responses)))
            if answer.fresh is not None and record is not None:
                await self._keep(tenant, user, record.version, answer.bundle, answer.fresh)
        return answer

    async def _ask(self, request: ScoreRequest) -> ScoreAnswer:
        started = time.perf_counter()
        answer = await self.scorer.score(request)
        if not answer.needs_choices:
            self.measures.scored(answer, seconds=time.perf_counter() - started)
        return answer

    async def add(
        self, tenant: str, user: str, choices: Sequence[TextComparison], *, idempotency_key: str | None
    ) -> Acknowledged:
        """Stores comparisons, and onboards the user with them.

        Once they are stored they are acknowledged, whether or not a replica can be asked. One is asked while the store still
        writes: its answer counts if what is stored then is what it was asked about, and else it is asked again.
        """
        before, earlier = (await self._knowledge(tenant, user))[0], await self._choices(tenant, user)
        limit = self.settings.limits.comparisons_per_user
        expected = tuple(kept_comparisons([*earlier, *choices], limit=limit))
        new = len(kept_comparisons(choices, limit=limit))  # pairs: one that is answered twice in a request counts once
        ahead = asyncio.create_task(self._onboard(before, expected, new))
        ahead.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may wait for it
        try:
            receipt = await _in_thread(lambda: self.store.add(tenant, user, choices, idempotency_key=idempotency_key))
        except BaseException:
            ahead.cancel()
            raise
        personalisation: Personalisation = "unknown"
        bundle: str | None = None
        seconds = 0.0
        try:
            stored = await self._choices(tenant, user)
            if stored:  # else the user is deleted already
                onboarded = await (ahead if stored == expected else self._onboard(before, stored, new))
                personalisation, bundle, seconds = onboarded.personalisation, onboarded.bundle, onboarded.seconds
                await self._keep(tenant, user, receipt.version, bundle, onboarded.embedding)
                if not receipt.replayed:
                    self.measures.onboarded(bundle, agreed=onboarded.agreed, comparisons=min(new, len(stored)))
        except Exception as error:  # whatever it is: a client that is told of a failure sends again what is stored
            foreseen = isinstance(error, (Busy, Unavailable, StoreError))
            log.warning("comparisons are stored, the user is not onboarded yet: %s", type(error).__name__, exc_info=not foreseen)
        return Acknowledged(receipt.version, receipt.comparisons, personalisation, bundle, receipt.replayed, seconds)

    async def _onboard(self, before: Knowledge, choices: Sequence[TextComparison], new: int) -> Onboarding:
        return await self.scorer.onboard(before, choices, min(new, len(choices)))

    async def question(self, tenant: str, user: str) -> tuple[str, Question | None]:
        """The bundle, and the comparison to ask a user next; None where all have been answered."""
        return await self.scorer.question(user, await self._choices(tenant, user))

    async def describe(self, tenant: str) -> dict[str, Any]:
        """What the bundle is, see `ScoringEngine.describe`: without users who were forgotten, and of another tenant's the places
        alone."""
        described = await self.scorer.describe()
        own = self.settings.tenant
        gone = await _in_thread(lambda: self.store.forgotten(own, [point["user"] for point in described["map"]]))
        points = [point for point in described["map"] if point["user"] not in gone]
        if tenant != own:
            points = [{"x": point["x"], "y": point["y"]} for point in points]
        return described | {"map": points}

    async def user(self, tenant: str, user: str) -> tuple[Place, UserRecord | None]:
        """Who a user is."""
        known, record = await self._knowledge(tenant, user)
        place = await self.scorer.place(known)
        if place is None:
            place = await self.scorer.place(_with_choices(known, await self._choices(tenant, user)))
            assert place is not None
        return place, record

    async def generate(self, tenant: str, request: GenerationRequest) -> AsyncIterator[list[Event]]:
        """What becomes of a chat. Adapters, as the bundle's users, are those of one tenant, and nobody's who was forgotten.

        Raises:
            Absent: There are no writing replicas.
        """
        if self.generator is None:
            fix = (
                "Start it with penchant serve --base FOLDER --adapters STORE, or with the settings generator.base and .adapters."
            )
            raise Absent("This service does not write.", where="generator", fix=fix)
        known, _ = await self._knowledge(tenant, request.user)
        started: Started | None = None
        tokens = 0
        events = self.generator.generate(request if known.may_be_seen else replace(request, user=""))
        async with contextlib.aclosing(events) as several:  # type: ignore[type-var]
            async for some in several:
                for event in some:
                    if isinstance(event, Started):
                        started = event
                    elif isinstance(event, Ended):
                        assert started is not None
                        self.measures.generated(started, event, tokens)
                    else:
                        tokens += event.tokens if event.finish is not None else 0
                yield some

    async def forget(self, tenant: str, user: str) -> int:
        """Deletes all that is stored of a user, and takes them out of the bundle's users; returns how many comparisons went.

        Of a user of the bundle's tenant a hash is kept, by which the bundle's embedding of them stays unused.
        """
        own = tenant == self.settings.tenant
        if own and self.generator is not None:
            await self.generator.forget(user)
        return await _in_thread(lambda: self.store.forget(tenant, user, remember=own))

    async def _knowledge(self, tenant: str, user: str) -> tuple[Knowledge, UserRecord | None]:
        """What the store knows, as the replicas need it and as it stands there."""
        if not user:
            return Knowledge(user), None
        record, own = await self._look_up(lambda: self.store.user(tenant, user)), tenant == self.settings.tenant
        if record is None:
            return Knowledge(user, may_be_seen=own), None
        return Knowledge(user, own and not record.forgotten, record.comparisons, record.embeddings), record

    async def find_key(self, secret: str) -> KeyRecord | None:
        """The key with this secret, valid or not."""
        return await self._look_up(lambda: self.store.find_key(secret))

    async def _look_up(self, work: Callable[[], ResultT]) -> ResultT:
        """One user's rows: in a thread where the database is elsewhere (measured with a file: 138 requests a second through
        threads, 185 without)."""
        return work() if self.store.is_local else await _in_thread(work)

    async def _choices(self, tenant: str, user: str) -> tuple[TextComparison, ...]:
        limit = self.settings.limits.comparisons_per_user
        rows = await self._look_up(lambda: self.store.comparisons(tenant, user, limit=limit))
        return _choices(rows)

    async def _keep(self, tenant: str, user: str, version: int, bundle: str, embedding: Any) -> None:
        """Has an embedding saved, and does not wait for it: it follows from what is stored, and who finds none computes it."""
        while len(self._unsaved) >= _MOST_UNSAVED:
            await asyncio.wait(self._unsaved, return_when=asyncio.FIRST_COMPLETED)

        async def save() -> None:
            try:
                await _in_thread(
                    lambda: self.store.save_embedding(tenant, user, version=version, bundle=bundle, embedding=embedding)
                )
            except StoreError as error:
                log.warning("an embedding is not saved: %s", type(error).__name__)

        task = asyncio.create_task(save())
        self._unsaved.add(task)
        task.add_done_callback(self._unsaved.discard)


def _choices(rows: Sequence[StoredComparison]) -> tuple[TextComparison, ...]:
    return tuple(TextComparison(row.prompt, row.chosen, row.rejected) for row in rows)


def _with_choices(known: Knowledge, choices: tuple[TextComparison, ...]) -> Knowledge:
    return Knowledge(known.user, known.may_be_seen, len(choices), known.embeddings, choices)


async def _in_thread(work: Callable[[], ResultT]) -> ResultT:
    """The store blocks, so it is asked in a thread."""
    return await asyncio.to_thread(work)
