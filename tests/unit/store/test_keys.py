"""Keys to the service."""

import datetime

import pytest

from penchant.data.choices import TextComparison
from penchant.errors import DataError

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def test_a_key_is_found_by_its_secret_alone(store):
    made, secret = store.create_key("acme", ["onboard", "score", "score"], name="the web site")
    other, other_secret = store.create_key("acme", ["admin"])
    assert secret.startswith("penchant_")
    assert len(secret) >= 50
    assert secret != other_secret
    assert store.find_key(secret) == made
    assert (made.tenant, made.scopes, made.name) == ("acme", ("onboard", "score"), "the web site")
    assert (made.expires, made.revoked) == (None, None)
    assert made.id != other.id
    for wrong in ("", secret[:-1], secret + " ", secret.upper(), "' OR 1=1 --", "a\0b", "\ud83d"):
        assert store.find_key(wrong) is None


def test_the_secret_is_not_in_the_file(tmp_path):
    from penchant.store import UserStore

    store = UserStore.open(f"sqlite:///{tmp_path}/users.db")
    _, secret = store.create_key("acme", ["score"], name="visible-name")
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"visible-name" in raw
    assert secret.encode() not in raw
    assert secret.removeprefix("penchant_").encode() not in raw
    store.close()


def test_a_key_expires(store):
    east = datetime.timezone(datetime.timedelta(hours=5))
    made, secret = store.create_key("acme", ["score"], expires=NOW.astimezone(east))
    found = store.find_key(secret)
    assert found == made
    assert found.expires == NOW
    assert found.expires.tzinfo is datetime.UTC
    assert found.valid(NOW - datetime.timedelta(seconds=1))
    assert not found.valid(NOW)


def test_a_key_is_revoked_for_good(store):
    made, secret = store.create_key("acme", ["score"])
    revoked = store.revoke_key(made.id)
    assert revoked.revoked is not None
    assert not revoked.valid(NOW)
    assert store.find_key(secret) == revoked == store.revoke_key(made.id)


@pytest.mark.parametrize("unknown", [0, -1, 99, 10**30, -(10**30)])
def test_an_unknown_key_cannot_be_revoked(store, unknown):
    store.create_key("acme", ["score"])
    with pytest.raises(DataError, match=f"no key {unknown}"):
        store.revoke_key(unknown)


def test_keys_are_listed_by_tenant(store):
    made = [store.create_key(tenant, ["score"])[0] for tenant in ("acme", "other", "acme")]
    assert store.list_keys() == made
    assert store.list_keys("acme") == [made[0], made[2]]
    assert store.list_keys("nobody") == []


@pytest.mark.parametrize("scopes", [[], ["score", "everything"], "score"])
def test_unknown_scopes_are_refused(store, scopes):
    with pytest.raises(DataError, match="score, onboard, admin"):
        store.create_key("acme", scopes)


def test_an_instant_needs_a_time_zone(store):
    with pytest.raises(DataError, match="expires"):
        store.create_key("acme", ["score"], expires=datetime.datetime(2026, 1, 1))


def test_tenants_are_those_of_users_and_of_keys(store):
    assert store.tenants() == []
    store.create_key("zoo", ["score"])
    store.add("acme", "ana", [TextComparison("p", "a", "b")])
    store.add("zoo", "ana", [TextComparison("p", "a", "b")])
    assert store.tenants() == ["acme", "zoo"]
    store.forget("acme", "ana", remember=True)
    assert store.tenants() == ["zoo"]
