"""The service without Ray: the same API, service and engine, with the engine called in this process."""

import asyncio
import contextlib

import pytest
from starlette.testclient import TestClient

from penchant.runtime.serving.api import make_app
from penchant.runtime.serving.config import LimitSettings, ServiceSettings
from penchant.runtime.serving.engine import ScoringEngine
from penchant.runtime.serving.measures import Measures
from penchant.runtime.serving.service import Service
from penchant.scoring.model import PersonalisedRewardModel
from penchant.store import UserStore


class LocalScorer:
    """One replica, in this process; `trouble` is raised instead of an answer."""

    def __init__(self, engine):
        self.engine, self.trouble, self.calls = engine, None, []

    async def _call(self, name, *arguments, **named):
        self.calls.append(name)
        if self.trouble is not None:
            raise self.trouble
        await asyncio.sleep(0)
        return getattr(self.engine, name)(*arguments, **named)

    async def score(self, request):
        (answer,) = await self._call("score", [request])
        return answer

    async def onboard(self, before, choices, new):
        return await self._call("onboard", before, choices, new=new)

    async def question(self, user, choices):
        return self.engine.bundle, await self._call("question", choices)

    async def place(self, known):
        return await self._call("place", known)

    async def describe(self):
        return await self._call("describe")


class Running:
    """A service and a client with a key for everything."""

    def __init__(self, settings, store, engine):
        self.settings, self.store, self.scorer = settings, store, LocalScorer(engine)
        self.service = Service(settings, store, self.scorer, Measures())
        self.http = TestClient(make_app(self.service), raise_server_exceptions=False)
        self.http.headers["Authorization"] = f"Bearer {self.key('score', 'onboard', 'admin')}"

    def key(self, *scopes, tenant="default", expires=None):
        return self.store.create_key(tenant, scopes, name="test", expires=expires)[1]

    def score(self, user, responses=("Step one: begin.", "Have a lovely day, dear reader."), **named):
        return self.http.post("/v1/score", json={"user": user, "prompt": "Explain tides.", "responses": list(responses)}, **named)

    def choose(self, user, *choices, **named):
        comparisons = [dict(zip(("prompt", "chosen", "rejected"), choice, strict=True)) for choice in choices]
        return self.http.post(f"/v1/users/{user}/comparisons", json={"comparisons": comparisons}, **named)


@pytest.fixture(scope="session")
def engine(bundle):
    return ScoringEngine(PersonalisedRewardModel.load(bundle[0], remembered_texts=1000))


@pytest.fixture(scope="session")
def start(engine, bundle):
    """Starts a service with its store in a folder, for a `with` block."""

    @contextlib.contextmanager
    def started(folder, **limits):
        settings = ServiceSettings(bundle=str(bundle[0]), store=f"sqlite:///{folder}/users.db", limits=LimitSettings(**limits))
        store = UserStore.open(settings.store)
        yield Running(settings, store, engine)
        store.close()

    return started


@pytest.fixture
def running(start, tmp_path):
    with start(tmp_path, body_bytes=20_000, text_characters=2000, responses=8, comparisons=4, comparisons_per_user=6) as running:
        yield running
