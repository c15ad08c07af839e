"""Many writers at once, requests that come twice, and writers that die."""

import contextlib
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from penchant.data.choices import TextComparison
from penchant.errors import DataError
from penchant.store import UserStore

WRITERS = 8
# Forked: a new interpreter would import for longer than these tests take. No store is open in the tests that do so.
PROCESSES = multiprocessing.get_context("fork")


def at_once(*tasks):
    """Runs tasks in threads that start together; what they return or raise, in order."""
    barrier = Barrier(len(tasks))

    def run(task):
        barrier.wait()
        try:
            return task()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


def test_threads_writing_to_one_user(store):
    """Versions are distinct, and whoever wrote later has the higher one: each sees its own and everything before."""

    def write(writer):
        receipts = []
        for number in range(10):
            choices = [TextComparison(f"{writer} {number} {part}", "a", "b") for part in range(2)]
            receipts.append(store.add("acme", "ana", choices))
        return receipts

    written = at_once(*(lambda writer=writer: write(writer) for writer in range(WRITERS)))
    receipts = sorted((receipt for own in written for receipt in own), key=lambda receipt: receipt.version)
    assert [receipt.comparisons for receipt in receipts] == [2 * (number + 1) for number in range(10 * WRITERS)]
    assert len({receipt.version for receipt in receipts}) == 10 * WRITERS
    assert all(own == sorted(own, key=lambda receipt: receipt.version) for own in written)
    record = store.user("acme", "ana")
    assert (record.version, record.comparisons) == (receipts[-1].version, 20 * WRITERS)
    prompts = [row.prompt for row in store.comparisons("acme", "ana", limit=1000)]
    assert len(set(prompts)) == len(prompts) == 20 * WRITERS
    for writer in range(WRITERS):
        own = [prompt for prompt in prompts if prompt.startswith(f"{writer} ")]
        assert own == [f"{writer} {number} {part}" for number in range(10) for part in range(2)]


def test_threads_writing_deleting_and_reading(store):
    """Whatever comes first, the count of a user is the number of their rows."""

    def write():
        return [store.add("acme", "ana", [TextComparison(f"p{number}", "a", "b")]) for number in range(15)]

    def forget():
        return sum(store.forget("acme", "ana", remember=True) for _ in range(10))

    def prune():
        return [store.prune(store.user("acme", "bob").created) for _ in range(5)]

    def read():
        return [(store.user("acme", "ana"), store.counts(), list(store.export())) for _ in range(10)]

    store.add("acme", "bob", [TextComparison("p", "a", "b")])
    one, two, deleted, pruned, _ = done = at_once(write, write, forget, prune, read)
    assert [result for result in done if isinstance(result, Exception)] == []
    assert sum(pruned) == 0
    versions = [receipt.version for receipt in one + two]
    assert len(set(versions)) == 30
    assert store.user("acme", "ana").comparisons == 30 - deleted == len(list(store.export())) - 1
    assert store.user("acme", "ana").version >= max(versions)


def test_a_request_that_comes_twice(store, choice):
    first = store.add("acme", "ana", [choice(1)], idempotency_key="k")
    store.add("acme", "ana", [choice(2)])
    again = store.add("acme", "ana", [choice(1)], idempotency_key="k")
    assert again.replayed
    assert (again.version, again.comparisons) == (first.version, 1)
    assert store.user("acme", "ana").comparisons == 2
    for user, choices in (("ana", [choice(2)]), ("ana", [choice(1), choice(1)]), ("bob", [choice(1)])):
        with pytest.raises(DataError, match="used for another request") as caught:
            store.add("acme", user, choices, idempotency_key="k")
        assert caught.value.where == "Idempotency-Key"
    assert store.user("acme", "bob") is None
    assert not store.add("other", "ana", [choice(3)], idempotency_key="k").replayed  # a key is a tenant's own
    assert store.counts().comparisons == 3


def test_a_request_that_comes_many_times_at_once(store, choice):
    receipts = at_once(*(lambda: store.add("acme", "ana", [choice(1)], idempotency_key="k") for _ in range(WRITERS)))
    assert sorted(receipt.replayed for receipt in receipts) == [False] + [True] * (WRITERS - 1)
    assert len({(receipt.version, receipt.comparisons) for receipt in receipts}) == 1
    assert store.user("acme", "ana").comparisons == 1


def test_one_key_for_many_requests_at_once(store, choice):
    receipts = at_once(*(lambda n=n: store.add("acme", f"user {n}", [choice(n)], idempotency_key="k") for n in range(WRITERS)))
    assert sum(isinstance(receipt, DataError) for receipt in receipts) == WRITERS - 1
    assert store.counts().users == store.counts().comparisons == 1


def test_a_request_that_failed_may_come_again(store, choice, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("penchant.store.store._append", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.add("acme", "ana", [choice()], idempotency_key="k")
    assert store.user("acme", "ana") is None
    assert not store.add("acme", "ana", [choice()], idempotency_key="k").replayed


def test_processes_opening_a_new_store_at_once(url, choice):
    together = PROCESSES.Barrier(4)

    def open_and_write(number):
        together.wait()
        with contextlib.closing(UserStore.open(url)) as store:
            store.add("acme", "ana", [choice(number)])

    processes = [PROCESSES.Process(target=open_and_write, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    with contextlib.closing(UserStore.open(url)) as store:
        assert sorted(row.prompt for row in store.export()) == [f"prompt {number}" for number in range(4)]


def test_a_writer_that_is_killed(url):
    """What was acknowledged is there, once; what was not may be sent again."""

    def request(number):
        return [TextComparison(f"{number} {part}", "a", "b") for part in range(3)]

    def write(first, told):
        store = UserStore.open(url)
        for number in range(first, 10**6):
            store.add("acme", "ana", request(number), idempotency_key=str(number))
            told.send(number)

    acknowledged = -1
    for life in range(3):
        hears, told = PROCESSES.Pipe(duplex=False)
        writer = PROCESSES.Process(target=write, args=(acknowledged + 1, told))
        writer.start()
        told.close()
        for _ in range(10):
            acknowledged = hears.recv()
        time.sleep(0.003 * life)
        writer.kill()
        with contextlib.suppress(EOFError):
            while True:
                acknowledged = hears.recv()
        writer.join()
    with contextlib.closing(UserStore.open(url)) as store:
        store.add("acme", "ana", request(acknowledged + 1), idempotency_key=str(acknowledged + 1))
        expected = [choice.prompt for number in range(acknowledged + 2) for choice in request(number)]
        assert [row.prompt for row in store.export()] == expected
        assert store.user("acme", "ana").comparisons == len(expected) >= 90
