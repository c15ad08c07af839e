"""The engine in one event loop: users side by side, who join and leave, each with their own adapter and their own troubles."""

import asyncio
import contextlib
import sys
import threading

import pytest

from penchant.errors import ArtifactError, ConfigError, DataError
from penchant.runtime.serving.chat.events import Ended, GenerationRequest, KeyNeeded, Piece, Started
from penchant.runtime.serving.config import GeneratorSettings, LimitSettings

KEY = b"k" * 32


def asking(user="", text="explain the tides", **settings):
    messages = ({"role": "user", "content": text},)
    return GenerationRequest(user=user, messages=messages, **({"temperature": 0.0, "max_tokens": 6} | settings))


async def ask(engine, *request, **settings):
    """The first event, the candidates' texts, and the last event."""
    events = [event async for some in engine.generate(asking(*request, **settings)) for event in some]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Ended)
    pieces = [event for event in events if isinstance(event, Piece)]
    texts = {}
    for piece in pieces:
        texts[piece.index] = texts.get(piece.index, "") + piece.text
    assert sorted(piece.index for piece in pieces if piece.finish) == sorted(texts)
    return events[0], [texts[index] for index in sorted(texts)], events[-1]


async def all_given_back(engine):
    """Returns once nothing of any request is left in the loop, the room and the pool."""
    async with asyncio.timeout(20):
        while (
            engine._room.free < engine.settings.rows
            or engine._loop._decoder.rows
            or any(resident.pins for resident in engine.pool._residents.values())
        ):
            await asyncio.sleep(0.001)


@pytest.fixture
def run(make_writer, tmp_path):
    """Runs `work(engine)` over an engine of its own."""

    def running(work, **settings):
        async def inner():
            engine = make_writer(tmp_path, settings.pop("limits", None), **settings)
            engine.check()
            try:
                return await asyncio.wait_for(work(engine), 60)
            finally:
                engine.close()

        return asyncio.run(inner())

    return running


def test_each_user_is_answered_by_their_own_adapter_alone_or_among_others(run):
    users = ["ann", "bob", "carl/ä", "nobody", ""]

    async def work(engine):
        alone = {user: await ask(engine, user) for user in users}
        together = await asyncio.gather(*(ask(engine, user) for user in users * 3))
        for user, (started, texts, _) in zip(users * 3, together, strict=True):
            assert texts == alone[user][1]
            assert started.how == alone[user][0].how
        return alone

    alone = run(work)
    assert [alone[user][0].how for user in users] == ["own", "own", "own", "task", "task"]
    assert len({alone[user][1][0] for user in users}) == 4
    assert alone["nobody"][1] == alone[""][1]


def test_whoever_comes_later_does_not_wait_for_whoever_is_written(run):
    async def work(engine):
        finished = []

        async def written(name, user, tokens):
            await ask(engine, user, max_tokens=tokens, seed=1, temperature=1.0)
            finished.append(name)

        long = asyncio.create_task(written("long", "ann", 300))
        while len(engine._loop._decoder.rows) < 1:
            await asyncio.sleep(0.001)
        await written("short", "bob", 3)
        await long
        return finished

    assert run(work) == ["short", "long"]


def test_a_slow_adapter_holds_up_its_own_user_alone(run):
    async def work(engine):
        get, going, done = engine.pool.store.get, threading.Event(), threading.Event()

        def slow(user, key=None):
            if user == "ann":
                going.set()
                assert done.wait(30)
            return get(user, key=key)

        engine.pool.store.get = slow
        waiting = asyncio.create_task(ask(engine, "ann"))
        while not going.is_set():
            await asyncio.sleep(0.001)
        others = await asyncio.gather(*(ask(engine, user) for user in ("bob", "carl/ä", "nobody")))
        assert not waiting.done()
        done.set()
        assert (await waiting)[0].cold
        assert not (await ask(engine, "ann"))[0].cold
        assert [started.how for started, *_ in others] == ["own", "own", "task"]

    run(work)


def test_more_requests_than_rows_are_all_answered_and_adapters_stay_bounded(run):
    async def work(engine):
        users = ["ann", "bob", "carl/ä", "nobody"] * 5
        expected = {user: (await ask(engine, user))[1] for user in users[:4]}
        several = await asyncio.gather(*(ask(engine, user) for user in users))
        assert [texts for _, texts, _ in several] == [expected[user] for user in users]
        assert max(ended.rows for *_, ended in several) <= 2
        assert len(engine.pool) <= 2
        assert sum(ended.evictions for *_, ended in several) > 0
        await all_given_back(engine)

    run(work, rows=2, adapters_in_memory=2)


def test_candidates_are_written_side_by_side_and_a_seed_draws_them_again(run):
    async def work(engine):
        drawn = [await ask(engine, "ann", candidates=4, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
        greedy = await ask(engine, "ann", candidates=2)
        return [texts for _, texts, _ in drawn], greedy[1]

    (first, again, other), greedy = run(work)
    assert first == again
    assert first != other
    assert len(set(first)) > 1
    assert greedy[0] == greedy[1]


def test_it_ends_at_a_stop_text_at_the_end_token_or_at_the_limit(run):
    async def work(engine):
        async def last(**settings):
            events = [event for some in [_ async for _ in engine.generate(asking("ann", **settings))] for event in some]
            text = "".join(event.text for event in events if isinstance(event, Piece))
            return text, events[-2].tokens, events[-2].finish

        whole, tokens, finish = await last()
        assert (tokens, finish) == (6, "length")
        words = whole.split()
        stopped, _, finish = await last(stop=(f" {words[2]}",))
        assert finish == "stop"
        assert stopped.split() == words[: words.index(words[2])]
        end = engine.tokenizer.convert_tokens_to_ids(words[1])
        engine._loop._end = frozenset([end])
        ended, tokens, finish = await last()
        assert (ended.split(), tokens, finish) == (words[: words.index(words[1])], words.index(words[1]) + 1, "stop")

    run(work)


def test_pieces_come_while_it_is_written_if_they_are_asked_for(run):
    async def work(engine):
        whole = [some async for some in engine.generate(asking("ann"))]
        assert len(whole) == 1
        streamed = [some async for some in engine.generate(asking("ann", stream=True))]
        assert len(streamed) > 2
        assert isinstance(streamed[0][0], Started)
        texts = [
            "".join(each.text for some in each_way for each in some if isinstance(each, Piece)) for each_way in (whole, streamed)
        ]
        assert texts[0] == texts[1]

    run(work)


def test_a_client_that_goes_away_takes_its_rows_along(run):
    async def work(engine):
        for _ in range(3):
            async with contextlib.aclosing(engine.generate(asking("ann", stream=True, max_tokens=400, candidates=2))) as events:
                async for some in events:
                    if any(isinstance(event, Piece) for event in some):
                        break
        await all_given_back(engine)
        assert (await ask(engine, "ann"))[0].how == "own"

    run(work, rows=4)


def test_a_request_that_is_cancelled_while_its_adapter_is_read_leaves_nothing_behind(run):
    async def work(engine):
        get, going, done = engine.pool.store.get, threading.Event(), threading.Event()

        def slow(user, key=None):
            going.set()
            assert done.wait(30)
            return get(user, key=key)

        engine.pool.store.get = slow
        waiting = asyncio.create_task(ask(engine, "ann"))
        while not going.is_set():
            await asyncio.sleep(0.001)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        done.set()
        await all_given_back(engine)

    run(work)


def damage(engine, user):
    path = engine.pool.store.place(user) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def test_a_damaged_adapter_is_an_error_for_its_user_alone(run):
    async def work(engine):
        damage(engine, "ann")
        expected = (await ask(engine, "bob"))[1]
        answers = await asyncio.gather(ask(engine, "ann"), ask(engine, "bob"), ask(engine, "nobody"), return_exceptions=True)
        assert isinstance(answers[0], ArtifactError)
        assert "ann" not in answers[0].what
        assert answers[1][1] == expected
        assert answers[2][0].how == "task"
        await all_given_back(engine)

    run(work)


def test_a_damaged_adapter_is_the_task_model_where_that_is_configured(run):
    async def work(engine):
        damage(engine, "ann")
        task, damaged = await ask(engine, "nobody"), await ask(engine, "ann")
        assert damaged[0].how == "damaged"
        assert damaged[1] == task[1]

    run(work, on_damaged="task")


@pytest.mark.parametrize("on_damaged", ["error", "task"])
def test_an_encrypted_adapter_asks_for_its_key_each_time(run, on_damaged):
    async def work(engine):
        opened = await ask(engine, "locked", key=KEY)
        assert opened[0].how == "own"
        for key, words in ((None, "is encrypted."), (b"x" * 32, "this key does not open it")):
            with pytest.raises(KeyNeeded, match=words):
                await ask(engine, "locked", key=key)
            assert (await ask(engine, "locked", key=KEY))[1] == opened[1]
        both = await asyncio.gather(ask(engine, "locked", key=KEY), ask(engine, "locked"), return_exceptions=True)
        assert both[0][1] == opened[1]
        assert isinstance(both[1], KeyNeeded), "though it is in memory, opened"
        return opened[1], (await ask(engine, "nobody"))[1]

    own, task = run(work, on_damaged=on_damaged)
    assert own != task


def test_what_is_wrong_with_an_encrypted_adapter_is_no_matter_of_its_key(run, monkeypatch, caplog):
    async def work(engine):
        place = engine.pool.store.place("locked")
        path, whole = place / "adapter_model.aes", (place / "adapter_model.aes").read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(ArtifactError, match="is damaged") as damaged:
            await ask(engine, "locked", key=KEY)
        assert isinstance(damaged.value.__cause__, ArtifactError)
        path.write_bytes(whole)
        monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
        with pytest.raises(ArtifactError, match="cannot open") as missing:
            await ask(engine, "locked", key=KEY)
        assert isinstance(missing.value.__cause__, ConfigError)
        assert [str(place) in record.message for record in caplog.records] == [True, True]
        assert "needs the package cryptography" in caplog.text
        assert "locked" not in caplog.text
        assert KEY.hex() not in caplog.text

    run(work)


def test_a_forgotten_users_adapter_is_gone_at_once(run):
    async def work(engine):
        before = await ask(engine, "ann")
        assert await engine.forget("ann")
        after = await ask(engine, "ann")
        assert (before[0].how, after[0].how) == ("own", "task")
        assert "ann" not in engine.pool
        assert not await engine.forget("ann")

    run(work)


def test_a_pass_that_fails_is_the_trouble_of_those_in_it_and_the_next_go_on(run):
    async def work(engine):
        expected = await ask(engine, "ann")
        forward, engine.pool.model.forward = engine.pool.model.forward, None
        failed = await asyncio.gather(ask(engine, "ann"), ask(engine, "bob"), return_exceptions=True)
        assert [type(each) for each in failed] == [TypeError, TypeError]
        engine.pool.model.forward = forward
        assert (await ask(engine, "ann"))[1] == expected[1]
        await all_given_back(engine)
        engine.check_alive()

    run(work)


def test_what_does_not_fit_is_refused_before_it_takes_room(run):
    async def work(engine):
        with pytest.raises(DataError, match="12 tokens; 8 are the limit"):
            await ask(engine, "ann", "the " * 11)
        with pytest.raises(DataError, match="exceed the model's 512"):
            await ask(engine, "ann", "the", max_tokens=600)
        await all_given_back(engine)

    run(work, limits=LimitSettings(prompt_tokens=8))


def test_a_base_that_chooses_labels_is_refused(make_writer, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.LlamaForCausalLM.can_generate", lambda self: False)
    with pytest.raises(ConfigError, match="it cannot write"):
        make_writer(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rows": 9, "adapters_in_memory": 8}, "at least rows, 9"),
        ({"backend": "vllm"}, "go together"),
        ({"backend": "vllm", "vllm": {"adapters_uri": "s3://b/a"}, "template": "plain"}, "template"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        GeneratorSettings(base="b", adapters="a", **settings)
