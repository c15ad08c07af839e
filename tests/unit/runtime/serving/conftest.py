"""The service without Ray: the same API, service and engine, with the engine called in this process."""

import asyncio
import contextlib
import shutil
import threading

import pytest
from starlette.testclient import TestClient

from penchant.adapters.applying import AdapterPool, grouped_model
from penchant.adapters.bases import load_task_base
from penchant.adapters.config import TaskBaseSettings
from penchant.adapters.store import AdapterStore
from penchant.runtime.serving.api import make_app
from penchant.runtime.serving.chat.engine import GenerationEngine
from penchant.runtime.serving.config import GeneratorSettings, LimitSettings, ServiceSettings
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


class LocalGenerator:
    """One replica, in a thread of this process with an event loop of its own; `trouble` is raised instead of an answer."""

    def __init__(self, engine):
        self.engine, self.trouble, self.asked = engine, None, []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _there(self, work):
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def generate(self, request):
        self.asked.append(request)
        if self.trouble is not None:
            raise self.trouble
        events = self.engine.generate(request)

        async def following():
            return await anext(events, None)

        try:
            while (some := await self._there(following())) is not None:
                yield some
        finally:
            asyncio.run_coroutine_threadsafe(events.aclose(), self._loop)

    async def forget(self, user):
        return await self._there(self.engine.forget(user))

    async def check(self):
        self.engine.check_alive()

    def stop(self):
        self._loop.call_soon_threadsafe(self.engine.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


class Running:
    """A service and a client with a key for everything."""

    def __init__(self, settings, store, engine, generator=None):
        self.settings, self.store, self.scorer, self.generator = settings, store, LocalScorer(engine), generator
        self.service = Service(settings, store, self.scorer, Measures(), generator)
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
def make_writer(personal_writer):
    """Makes an engine over a copy of the tiny writer in a folder, and its settings."""

    def make(folder, limits=None, **settings):
        shutil.copytree(personal_writer, folder, dirs_exist_ok=True)
        values = {"base": str(folder / "base"), "adapters": str(folder / "store"), "max_tokens": 6}
        settings = GeneratorSettings(**(values | settings))
        store = AdapterStore.open(settings.adapters)
        base, tokenizer = load_task_base(TaskBaseSettings(name=settings.base, answers="text"))
        pool = AdapterPool(grouped_model(base, store, slots=settings.adapters_in_memory), store)
        return GenerationEngine(pool, tokenizer, settings, limits or LimitSettings())

    return make


@pytest.fixture(scope="session")
def start(engine, bundle, make_writer):
    """Starts a service with its store in a folder, for a `with` block; with `generator` settings it writes, too."""

    @contextlib.contextmanager
    def started(folder, generator=None, **limits):
        limits = LimitSettings(**limits)
        writing = None if generator is None else LocalGenerator(make_writer(folder / "writer", limits, **generator))
        settings = ServiceSettings(
            bundle=str(bundle[0]),
            store=f"sqlite:///{folder}/users.db",
            limits=limits,
            generator=writing.engine.settings if writing is not None else None,
        )
        store = UserStore.open(settings.store)
        yield Running(settings, store, engine, writing)
        store.close()
        if writing is not None:
            writing.stop()

    return started


@pytest.fixture
def running(start, tmp_path):
    with start(tmp_path, body_bytes=20_000, text_characters=2000, responses=8, comparisons=4, comparisons_per_user=6) as running:
        yield running
