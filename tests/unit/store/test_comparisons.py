"""What is stored of users, and what comes back."""

import datetime

import numpy as np
import pytest

from penchant.data.choices import TextComparison
from penchant.errors import DataError
from penchant.store import Counts, Receipt, UserRecord, kept_comparisons, tables

ODD = [
    "'; DROP TABLE users; --",
    'Robert"); DELETE FROM comparisons; --',
    "%(tenant)s :user ? $1 {0} \\",
    "👩‍👩‍👧 naïve 例え ‮ \u00a0 \ufeff \U0010ffff",
    "line\nline\r\n\ttab \x01 \x7f",
    "",
    "x" * 100_000,
]


def test_nothing_is_known_of_a_stranger(store):
    assert store.user("acme", "ana") is None
    assert store.comparisons("acme", "ana", limit=10) == []
    assert store.counts() == Counts(0, 0)
    assert list(store.export()) == []
    assert store.forget("acme", "ana") == 0
    assert store.user("acme", "ana") is None


def test_receipts_and_records(store, choice):
    before = datetime.datetime.now(datetime.UTC)
    first = store.add("acme", "ana", [choice(1), choice(2)])
    second = store.add("acme", "ana", [choice(3)])
    after = datetime.datetime.now(datetime.UTC)
    assert first == Receipt(first.version, 2, replayed=False)
    assert second == Receipt(second.version, 3, replayed=False)
    assert 0 < first.version < second.version
    record = store.user("acme", "ana")
    assert record == UserRecord("acme", "ana", second.version, 3, False, record.created, record.updated)
    assert before <= record.created < record.updated <= after
    assert record.created.tzinfo is datetime.UTC
    stored = store.comparisons("acme", "ana", limit=10)
    assert [TextComparison(row.prompt, row.chosen, row.rejected) for row in stored] == [choice(1), choice(2), choice(3)]
    assert all(before <= row.created <= after and row.created.tzinfo is datetime.UTC for row in stored)
    assert store.counts() == Counts(1, 3)


def test_a_large_request_keeps_its_order(store, choice):
    choices = [choice(number) for number in range(2500)]
    receipt = store.add("acme", "ana", choices)
    assert [row.prompt for row in store.comparisons("acme", "ana", limit=2500)] == [choice.prompt for choice in choices]
    assert store.user("acme", "ana").version == receipt.version
    assert [row.prompt for row in store.export()] == [choice.prompt for choice in choices]


def test_the_newest_count(store, choice):
    store.add("acme", "ana", [choice(number) for number in range(6)])
    prompts = [row.prompt for row in store.comparisons("acme", "ana", limit=2)]
    assert prompts == ["prompt 4", "prompt 5"]
    assert store.comparisons("acme", "ana", limit=0) == []


def test_of_one_pair_the_latest_choice_counts(store):
    once, reverse, other = TextComparison("p", "a", "b"), TextComparison("p", "b", "a"), TextComparison("q", "a", "b")
    store.add("acme", "ana", [once, other])
    store.add("acme", "bob", [once])
    store.add("acme", "ana", [reverse])
    stored = store.comparisons("acme", "ana", limit=2)
    assert [(row.prompt, row.chosen) for row in stored] == [("q", "a"), ("p", "b")]
    assert [row.chosen for row in store.comparisons("acme", "bob", limit=2)] == ["a"]
    assert store.user("acme", "ana").comparisons == 3  # all of them are stored
    assert len(list(store.export("acme"))) == 4


@pytest.mark.parametrize("limit", [0, 1, 3, 9])
def test_what_will_be_stored_is_known_before(store, limit):
    random = np.random.default_rng(limit)
    choices = [
        TextComparison(f"p{prompt}", *(("a", "b") if forth else ("b", "a")))
        for prompt, forth in random.integers((4, 2), size=(12, 2))
    ]
    for start in range(0, 12, 4):
        store.add("acme", "ana", choices[start : start + 4])
        stored = [TextComparison(row.prompt, row.chosen, row.rejected) for row in store.comparisons("acme", "ana", limit=limit)]
        assert kept_comparisons(choices[: start + 4], limit=limit) == stored


def test_digests_do_not_take_one_pair_for_another(store):
    store.add("acme", "ana", [TextComparison("p", "a b", "c"), TextComparison("p a", "b", "c"), TextComparison("p", "a", "b c")])
    assert len(store.comparisons("acme", "ana", limit=9)) == 3


def test_tenants_and_users_are_apart(store, choice):
    owners = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("A", "bc"), ("a", "bc ")]
    for number, (tenant, user) in enumerate(owners):
        store.add(tenant, user, [choice(number)])
    for number, (tenant, user) in enumerate(owners):
        assert [row.prompt for row in store.comparisons(tenant, user, limit=9)] == [f"prompt {number}"]
    store.forget("a", "bc")
    assert store.user("a", "bc") is None
    assert [(row.tenant, row.user) for row in store.export()] == owners[1:]
    assert [row.user for row in store.export("ab")] == ["c"]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_any_text_comes_back_as_it_was(store, text):
    receipt = store.add(text, text, [TextComparison(text, text + "1", text + "2")], idempotency_key=text)
    store.save_embedding(text, text, version=receipt.version, bundle=text, embedding=np.zeros(2, np.float32))
    (row,) = store.comparisons(text, text, limit=1)
    assert (row.prompt, row.chosen, row.rejected) == (text, text + "1", text + "2")
    (exported,) = store.export(text)
    assert (exported.tenant, exported.user, exported.prompt) == (text, text, text)
    assert list(store.user(text, text).embeddings) == [text]
    assert store.create_key(text, ["score"], name=text)[0] in store.list_keys(text)
    assert store.counts() == Counts(1, 1)
    assert store.forget(text, text) == 1


@pytest.mark.parametrize("text", ["a\0b", "half \ud83d", None, 3], ids=["nul", "surrogate", "none", "number"])
def test_what_no_database_can_hold_is_refused(store, text):
    good = TextComparison("p", "a", "b")
    attempts = {
        "tenant": lambda: store.add(text, "ana", [good]),
        "user": lambda: store.user("acme", text),
        "comparisons[1].prompt": lambda: store.add("acme", "ana", [good, TextComparison(text, "a", "b")]),
        "comparisons[0].chosen": lambda: store.add("acme", "ana", [TextComparison("p", text, "b")]),
        "comparisons[0].rejected": lambda: store.add("acme", "ana", [TextComparison("p", "a", text)]),
        "bundle": lambda: store.save_embedding("acme", "ana", version=1, bundle=text, embedding=np.zeros(2, np.float32)),
        "name": lambda: store.create_key("acme", ["score"], name=text),
    }
    for field, attempt in attempts.items():
        with pytest.raises(DataError) as caught:
            attempt()
        assert caught.value.where == field
    if text is not None:
        with pytest.raises(DataError, match="Idempotency-Key"):
            store.add("acme", "ana", [good], idempotency_key=text)
        with pytest.raises(DataError, match="tenant"):
            store.export(text)
    assert store.counts() == Counts(0, 0)


def test_a_request_without_comparisons_is_refused(store):
    with pytest.raises(DataError, match="There is no comparison"):
        store.add("acme", "ana", [])
    assert store.user("acme", "ana") is None


def test_nothing_goes_by_the_clock(store, choice, monkeypatch):
    versions = []
    for year in (2030, 1990, 2010):
        for module in ("store", "user_rows"):
            monkeypatch.setattr(
                f"penchant.store.{module}.now", lambda year=year: datetime.datetime(year, 1, 1, tzinfo=datetime.UTC)
            )
        versions.append(store.add("acme", "ana", [choice(year)], idempotency_key=str(year)).version)
    assert versions == sorted(versions)
    assert [row.created.year for row in store.comparisons("acme", "ana", limit=3)] == [2030, 1990, 2010]
    assert [row.prompt for row in store.comparisons("acme", "ana", limit=1)] == ["prompt 2010"]
    assert store.add("acme", "ana", [choice(1990)], idempotency_key="1990").version == versions[1]


def test_an_instant_keeps_its_moment():
    instant = tables.Instant()
    east = datetime.timezone(datetime.timedelta(hours=5))
    stored = instant.process_bind_param(datetime.datetime(2026, 1, 1, 3, tzinfo=east), None)
    assert stored == datetime.datetime(2025, 12, 31, 22, tzinfo=datetime.UTC)
    assert instant.process_result_value(stored.replace(tzinfo=None), None) == stored
    assert instant.process_result_value(stored.astimezone(east), None).tzinfo is datetime.UTC


def test_an_export_is_one_snapshot(store, choice):
    store.add("acme", "ana", [choice(number) for number in range(3000)])
    exported = store.export()
    first = next(exported)
    store.add("acme", "bob", [choice(1)])
    store.forget("acme", "ana")
    assert 1 + sum(1 for _ in exported) == 3000
    assert first.user == "ana"
    assert [row.user for row in store.export()] == ["bob"]


def test_an_export_may_be_given_up(store, choice):
    for number in range(20):
        store.add("acme", "ana", [choice(number), choice(number)])
        next(store.export())  # more of them than there are connections
    assert store.counts().comparisons == 40


def test_an_embedding_belongs_to_a_version_and_a_bundle(store, choice):
    embedding = np.random.default_rng(0).normal(size=64).astype(np.float32)
    version = store.add("acme", "ana", [choice()]).version
    store.add("acme", "bob", [choice()])
    store.save_embedding("acme", "ana", version=version, bundle="one", embedding=embedding)
    store.save_embedding("acme", "ana", version=version, bundle="two", embedding=embedding[:3].astype(">f4"))
    found = store.user("acme", "ana").embeddings
    assert found["one"].dtype == np.float32
    assert (found["one"] == embedding).all()
    found["one"][0] = 0  # the caller's own
    assert {name: len(value) for name, value in found.items()} == {"one": 64, "two": 3}
    assert (found["two"] == embedding[:3]).all()
    assert store.user("acme", "bob").embeddings == {}
    store.add("acme", "ana", [choice(1)])
    assert store.user("acme", "ana").embeddings == {}


def test_an_embedding_is_replaced_by_a_newer_one_alone(store, choice):
    ones, twos, threes = (np.full(2, value, np.float32) for value in (1, 2, 3))
    old = store.add("acme", "ana", [choice(1)]).version
    store.save_embedding("acme", "ana", version=old, bundle="b", embedding=ones)
    new = store.add("acme", "ana", [choice(2)]).version
    store.save_embedding("acme", "ana", version=new, bundle="b", embedding=twos)
    store.save_embedding("acme", "ana", version=old, bundle="b", embedding=ones)
    store.save_embedding("acme", "ana", version=new, bundle="b", embedding=threes)
    assert (store.user("acme", "ana").embeddings["b"] == twos).all()


def test_an_embedding_of_somebody_deleted_meanwhile_is_not_kept(store, choice):
    ones = np.ones(2, np.float32)
    stale = store.add("acme", "ana", [choice(1)]).version
    store.forget("acme", "ana")
    store.save_embedding("acme", "ana", version=stale, bundle="b", embedding=ones)
    store.add("acme", "ana", [choice(2)])
    store.save_embedding("acme", "ana", version=stale, bundle="b", embedding=ones)
    assert store.user("acme", "ana").embeddings == {}
    store.forget("acme", "ana", remember=True)
    tombstone = store.user("acme", "ana").version
    store.save_embedding("acme", "ana", version=tombstone, bundle="b", embedding=ones)
    assert store.user("acme", "ana").embeddings == {}


def test_an_embedding_is_one_vector(store):
    with pytest.raises(DataError, match=r"shape \(1, 2\)"):
        store.save_embedding("acme", "ana", version=1, bundle="b", embedding=np.zeros((1, 2), np.float32))
