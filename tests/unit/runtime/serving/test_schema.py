"""The OpenAPI against the API that it describes: its examples, and thousands of requests, good and bad, made from it."""

import contextlib
import re
import sqlite3
from collections import Counter

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from penchant.runtime.serving.api import make_app
from penchant.runtime.serving.chat.schemas import CHAT_PATH
from penchant.runtime.serving.config import ServiceSettings
from penchant.runtime.serving.measures import Measures
from penchant.runtime.serving.schemas import check_user
from penchant.runtime.serving.service import Service

CASES = 5000

# The description needs neither a store nor replicas; the requests are sent to an API that has both.
DOCUMENT = make_app(Service(ServiceSettings(bundle=""), None, None, Measures())).openapi()
# A description knows no settings. What happens to chats with another model has a test of its own.
DOCUMENT["components"]["schemas"]["ChatBody"]["properties"]["model"]["enum"] = ["penchant"]
schema = schemathesis.openapi.from_dict(DOCUMENT)
schema.config.update(base_url="http://testserver")
schema.config.generation.update(with_security_parameters=False)
OPERATIONS = [operation.ok().label for operation in schema.get_all_operations()]


@pytest.fixture(scope="module")
def api(start, tmp_path_factory):
    """A service with one store for all requests, and a count of them."""
    with start(tmp_path_factory.mktemp("store"), generator={"rows": 4}, comparisons_per_user=6, generated_tokens=8) as running:
        running.tried = Counter()
        yield running


@pytest.fixture(scope="module")
def database(api):
    with contextlib.closing(sqlite3.connect(api.settings.store.removeprefix("sqlite:///"))) as connection:
        yield connection


def changes(database):
    """Is another after a request has stored something. Embeddings do not count: they are saved after the answer."""
    counts = [f"(SELECT count(*) FROM {table})" for table in ("users", "comparisons", "receipts", "access_keys")]
    newest = "(SELECT total(version) FROM users)", "(SELECT max(id) FROM comparisons)"
    return database.execute(f"SELECT {', '.join([*counts, *newest])}").fetchone()


def test_the_pattern_of_a_text_allows_what_the_api_does():
    user = DOCUMENT["components"]["schemas"]["ScoreBody"]["properties"]["user"]
    for character in map(chr, range(0xD800)):
        try:
            allowed = check_user(character) == character
        except ValueError:
            allowed = False
        assert bool(re.search(user["pattern"], character)) == allowed, hex(ord(character))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_examples_that_are_right(api, operation):
    method, path = operation.split()
    described = DOCUMENT["paths"][path][method.lower()]
    for parameter in described.get("parameters", []):
        if parameter["required"]:
            path = path.replace(f"{{{parameter['name']}}}", parameter["schema"]["examples"][0])
    bodies = [None]
    if "requestBody" in described:
        name = described["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        bodies = DOCUMENT["components"]["schemas"][name]["examples"]
    for body in bodies:
        if body is not None:
            jsonschema.validate(body, {"$ref": f"#/components/schemas/{name}"} | DOCUMENT)
        answer = api.http.request(method, path, json=body)
        assert answer.status_code == 200, answer.text


def cannot_be_said_in_a_schema(answer):
    """What is refused though the OpenAPI, which knows single fields, allows it."""
    error = answer.json()["error"]
    chat = {f"body.{field}" for field in ("messages", "n", "max_tokens", "max_completion_tokens", "stream_options")}
    return "same text" in error["message"] or error["where"] == "Idempotency-Key" or error["where"] in chat


@schema.parametrize()
@settings(
    max_examples=600,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_what_is_made_from_the_openapi_is_answered_as_it_says(case, api, database):
    before = changes(database)
    answer = case.call(headers={"Authorization": api.http.headers["Authorization"]}, app=api.http.app)
    api.tried[case.operation.label] += 1
    assert answer.status_code < 500
    excused = [ignored_auth]  # it sends requests of its own; another test leaves the key out
    if answer.status_code >= 400:
        error = answer.json()["error"]
        openai = {"param", "code"} if case.operation.path == CHAT_PATH else set()
        assert set(error) == {"type", "message", "where", "fix"} | openai
        assert error["message"]
        assert error["where"]
        assert changes(database) == before
        if answer.status_code in (400, 422) and cannot_be_said_in_a_schema(answer):
            excused.append(positive_data_acceptance)
    case.validate_response(answer, excluded_checks=excused)


def test_thousands_were_tried_and_the_store_is_whole(api, database):
    if set(api.tried) != set(OPERATIONS):
        pytest.skip("counts what the tests before it did")
    assert api.tried.total() >= CASES
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    told = database.execute("SELECT user_key, comparisons FROM users WHERE comparisons > 0 ORDER BY user_key").fetchall()
    assert told
    assert told == database.execute("SELECT user_key, count(*) FROM comparisons GROUP BY user_key ORDER BY user_key").fetchall()
