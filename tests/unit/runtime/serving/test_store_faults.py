"""What a client sees while the store is full, may not be written, or finds its clock set anew."""

import datetime
from types import SimpleNamespace

import pytest

from penchant.runtime.serving import api
from penchant.store import engines, keys, store, user_rows

CHOICES = [
    ("Explain tides.", "Step one: begin.", "Have a lovely day, dear reader."),
    ("Name a fruit.", "Apple.", "Such a sweet question!"),
    ("Why is it dark?", "The sun is away.", "Ah, the night, dear reader!"),
]


def refused(answer, words):
    assert answer.status_code == 503, answer.text
    assert answer.headers["Retry-After"]
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["fix"]


def write_again(running, key):
    answer = running.choose("ana", CHOICES[1], headers={"Idempotency-Key": key})
    assert answer.status_code == 200, answer.text
    assert answer.json()["comparisons"] == 2
    assert [choice.chosen for choice in running.store.export()] == ["Step one: begin.", "Apple."]


def test_a_full_disk_takes_no_choice_and_scores_go_on(start, tmp_path, monkeypatch):
    prepare, pages = engines._prepare_sqlite, 80

    def limited(connection, record):
        prepare(connection, record)
        connection.execute(f"PRAGMA max_page_count = {pages}")

    monkeypatch.setattr(engines, "_prepare_sqlite", limited)
    with start(tmp_path, body_bytes=10**6, text_characters=10**6) as running:
        assert running.choose("ana", CHOICES[0]).status_code == 200
        long = ("Explain tides.", "a" * 400_000, "b")
        refused(running.choose("ana", long, headers={"Idempotency-Key": "long"}), "disk is full; nothing was stored")
        assert running.score("ana").json()["personalisation"] == "onboarded"
        write_again(running, key="short")


def test_a_store_that_may_only_be_read_takes_no_choice_and_scores_go_on(start, tmp_path, monkeypatch):
    prepare, connections = engines._prepare_sqlite, []

    def noted(connection, record):
        prepare(connection, record)
        connections.append(connection)

    monkeypatch.setattr(engines, "_prepare_sqlite", noted)
    with start(tmp_path) as running:
        assert running.choose("ana", CHOICES[0]).status_code == 200
        for connection in connections:
            connection.execute("PRAGMA query_only = ON")
        refused(running.choose("ana", CHOICES[1], headers={"Idempotency-Key": "later"}), "cannot be written")
        refused(running.http.get("/readyz"), "cannot be written")
        assert running.score("ana").json()["personalisation"] == "onboarded"
        for connection in connections:
            connection.execute("PRAGMA query_only = OFF")
        assert running.http.get("/readyz").status_code == 200
        write_again(running, key="later")


@pytest.fixture
def clock(monkeypatch):
    """Days by which the clock is wrong."""

    class Clock(datetime.datetime):
        days = 0

        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + datetime.timedelta(days=cls.days)

    for module in (user_rows, store, keys):
        monkeypatch.setattr(module, "now", lambda: Clock.now(datetime.UTC))
    monkeypatch.setattr(api, "datetime", SimpleNamespace(datetime=Clock, UTC=datetime.UTC))
    return Clock


def test_a_clock_that_jumps_changes_neither_order_nor_versions(running, clock):
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)
    lent = {"Authorization": f"Bearer {running.key('score', expires=expires)}"}
    versions, scores = [], []
    for days, choice in zip((0, -400, 4000), CHOICES, strict=True):
        clock.days = days
        stored = running.choose("ana", choice, headers={"Idempotency-Key": choice[0]})
        assert stored.status_code == 200, stored.text
        versions.append(stored.json()["version"])
        scores.append(running.score("ana").json()["scores"][0]["score"])
        assert running.score("ana", headers=lent).status_code == (401 if days > 30 else 200)
    assert versions == sorted(set(versions))
    assert len(set(scores)) == 3, "a score follows the latest version, whatever its date"
    assert [choice.chosen for choice in running.store.export()] == [choice[1] for choice in CHOICES]
    clock.days = 0
    again = running.choose("ana", CHOICES[2], headers={"Idempotency-Key": CHOICES[2][0]})
    assert (again.json()["comparisons"], again.headers["Idempotency-Replayed"]) == (3, "true")
    assert running.http.delete("/v1/users/ana").json()["comparisons"] == 3
