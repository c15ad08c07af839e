import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from penchant.adapters.answering import PersonalModel
from penchant.adapters.applying import AdapterPool
from penchant.adapters.bases import base_fingerprint
from penchant.adapters.cards import Card
from penchant.adapters.config import AdapterSettings
from penchant.adapters.items import Item
from penchant.adapters.store import AdapterStore
from penchant.errors import ArtifactError, ConfigError

USERS = ["ann", "bob", "carl", "dora"]
PROMPTS = ["red round", "blue", "green flat small old", "dry"]


@pytest.fixture
def personal(tiny, tmp_path):
    """Makes a personal model over a store of four users with strong adapters."""

    def make(answers, kind="lora", slots=4):
        base, tokenizer = tiny.make_base(answers)
        fitter = tiny.make_fitter(base, tokenizer, AdapterSettings(kind=kind, r=2, virtual_tokens=2), slots=slots)
        store = AdapterStore.create(
            tmp_path / answers, fingerprint=base_fingerprint(base), config=fitter.model.config, shapes=fitter.model.shapes
        )
        for number, user in enumerate(USERS):
            generator = torch.Generator().manual_seed(number)
            values = {name: torch.randn(s, generator=generator, dtype=torch.float64) for name, s in store.shapes.items()}
            store.put(Card(user=user, base=store.fingerprint), values)
        return PersonalModel(AdapterPool(fitter.model, store), fitter.reader)

    return make


@pytest.mark.parametrize("kind", ["lora", "ia3", "prompt_tuning"])
def test_a_mixed_batch_is_answered_as_one_user_at_a_time(personal, kind):
    model = personal("label", kind)
    users, prompts = [*USERS, "nobody", "ann"], [*PROMPTS, *PROMPTS[:2]]
    together = model.choose(users, prompts)
    assert together.how == ["own"] * 4 + ["task", "own"]
    for row, (user, prompt) in enumerate(zip(users, prompts, strict=True)):
        alone = model.choose([user], [prompt])
        torch.testing.assert_close(alone.probability[0], together.probability[row], rtol=0, atol=1e-6)
        assert alone.texts == [together.texts[row]]
    item = Item(tuple(model.reader.prompt("green", 32)), 0)
    base = model.reader.base(**model.reader.inputs([item])).logits
    unknown = model.choose(["nobody"], ["green"])
    torch.testing.assert_close(unknown.probability, base.float().softmax(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("answers", ["label", "text"])
def test_a_prompt_that_fits_is_read_whole(personal, answers):
    reader = personal(answers, "lora").reader
    whole = [len(reader.prompt("green " * words, room=1000)) for words in range(1, 60)]
    fits = [reader.fits("green " * words) for words in range(1, 60)]
    assert fits == [tokens <= 32 for tokens in whole]
    assert any(fits)
    assert not all(fits)


@pytest.mark.parametrize("kind", ["lora", "prompt_tuning"])
def test_a_mixed_batch_writes_as_one_user_at_a_time(personal, kind):
    model = personal("text", kind)
    users, prompts = [*USERS, "nobody"], [*PROMPTS, PROMPTS[0]]
    settings = {"max_new_tokens": 5, "do_sample": False}
    together = model.write(users, prompts, **settings)
    assert len(set(together.texts)) > 2
    alone = [model.write([user], [prompt], **settings).texts[0] for user, prompt in zip(users, prompts, strict=True)]
    assert together.texts == alone


def test_several_candidates_of_a_row_are_its_users(personal):
    model = personal("text")
    one = model.write(["ann"], ["red"], max_new_tokens=4, do_sample=False)
    several = model.write(["bob", "ann"], ["red", "red"], max_new_tokens=4, do_sample=False, num_beams=2, num_return_sequences=2)
    assert len(several.texts) == 4
    assert one.how == ["own"]


def test_memory_is_bounded_and_the_least_used_goes(personal):
    pool = personal("label", slots=2).pool
    for user in ("ann", "bob", "ann", "carl"):
        with pool.pinned([user]):
            pass
    assert len(pool) == 2
    assert "bob" not in pool
    assert pool.loads == 3
    with pool.pinned(["ann"]):
        assert pool.loads == 3
    with pytest.raises(ConfigError, match="3 users with adapters, and 2 fit"), pool.pinned(["ann", "bob", "carl"]):
        pass


def test_what_is_in_use_is_not_evicted(personal):
    pool = personal("label", slots=2).pool
    entered = threading.Event()

    def other():
        with pool.pinned(["carl", "dora"]):
            entered.set()

    with pool.pinned(["ann", "bob"]) as held:
        before = {slot: pool.model.take(slot) for slot in held.slot.tolist()}
        waiting = threading.Thread(target=other)
        waiting.start()
        assert not entered.wait(0.1)
        for slot, tensors in before.items():
            torch.testing.assert_close(pool.model.take(slot), tensors, rtol=0, atol=0)
    waiting.join(10)
    assert entered.is_set()


def test_a_slow_read_holds_up_nobody_else(personal):
    pool = personal("label").pool
    get, going, done = pool.store.get, threading.Event(), threading.Event()

    def slow(user, key=None):
        if user == "ann":
            going.set()
            assert done.wait(10)
        return get(user, key=key)

    pool.store.get = slow

    def hold(user):
        with pool.pinned([user]) as held:
            return held.how

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.submit(hold, "ann"), threads.submit(hold, "ann")
        assert going.wait(10)
        assert hold("bob") == ["own"]
        assert not first.done()
        done.set()
        assert first.result(10) == second.result(10) == ["own"]
    assert pool.loads == 2, "two batches of one user share a read"


def test_many_threads_get_their_own_users(personal):
    model = personal("label", slots=2)
    expected = {user: model.choose([user], ["red flat"]).probability for user in USERS}

    def ask(number):
        user = USERS[number % 4]
        return user, model.choose([user], ["red flat"]).probability

    with ThreadPoolExecutor(4) as threads:
        for user, probability in threads.map(ask, range(40)):
            torch.testing.assert_close(probability, expected[user], rtol=0, atol=1e-6)


def test_a_damaged_adapter_is_its_users_trouble_alone(personal):
    model = personal("label")
    expected = model.choose(["bob"], ["red"]).probability
    path = model.pool.store.place("ann") / "adapter_model.safetensors"
    intact = path.read_bytes()
    path.write_bytes(intact[:-1])
    for _ in range(2):
        answers = model.choose(["ann", "bob", "nobody"], ["red", "red", "red"])
        assert answers.how == ["damaged", "own", "task"]
        assert isinstance(answers.problems["ann"], ArtifactError)
        torch.testing.assert_close(answers.probability[0], answers.probability[2])
        torch.testing.assert_close(answers.probability[1:2], expected, rtol=0, atol=1e-6)
    path.write_bytes(intact)
    assert model.choose(["ann"], ["red"]).how == ["own"]


def test_a_new_adapter_is_used_and_a_deleted_one_is_gone_at_once(personal):
    model = personal("label")
    store, pool = model.pool.store, model.pool
    first = model.choose(["ann"], ["red"])
    store.put(Card(user="ann", base=store.fingerprint), store.get("bob"))
    second = model.choose(["ann", "bob"], ["red", "red"])
    assert not torch.equal(first.probability[0], second.probability[0])
    torch.testing.assert_close(second.probability[0], second.probability[1], rtol=0, atol=1e-6)
    with pool.pinned(["ann"]) as held:
        slot = int(held.slot[0])
        store.delete("ann")
        assert model.choose(["ann"], ["red"]).how == ["task"]
        assert any(value.any() for value in (pool.model.take(slot)[name] for name in pool.model.shapes if "lora_B" in name))
    assert "ann" not in pool
    assert not any(value.any() for name, value in pool.model.take(slot).items() if "lora_B" in name), "not even in memory"


def test_a_store_of_another_kind_is_refused(personal, tiny):
    model = personal("label")
    other = tiny.make_fitter(*tiny.make_base("label"), AdapterSettings(r=3)).model
    with pytest.raises(ArtifactError, match="another kind"):
        AdapterPool(other, model.pool.store)
    with pytest.raises(ConfigError, match="Call choose"):
        model.write(["ann"], ["red"])
