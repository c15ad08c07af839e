"""What hostile, broken and slow clients send, over a socket: refused with what and where, and nothing is stored or logged."""

import datetime
import http.client
import json
import socket
import sqlite3
import threading
import time
from urllib.parse import quote

import pytest
import uvicorn

SECRET = "hush"  # is in every text, id and key that is sent, and must be in no log
SCORE, RERANK, CHOICES = "/v1/score", "/v1/rerank", f"/v1/users/{SECRET}/comparisons"
BODY_SECONDS = 1.0


@pytest.fixture(scope="module")
def listening(start, tmp_path_factory):
    """A service that listens on a port, with the limits that it has by default but for slow bodies."""
    with start(tmp_path_factory.mktemp("store"), body_seconds=BODY_SECONDS) as running:
        options = {"host": "127.0.0.1", "port": 0, "log_config": None, "access_log": False, "lifespan": "off"}
        server = uvicorn.Server(uvicorn.Config(running.http.app, **options))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        running.port = server.servers[0].sockets[0].getsockname()[1]
        yield running
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def service(listening, caplog):
    caplog.set_level("INFO")
    yield listening
    assert SECRET not in caplog.text
    assert listening.http.headers["Authorization"][7:] not in caplog.text
    assert "Traceback" not in caplog.text


def stored(service):
    with sqlite3.connect(service.settings.store.removeprefix("sqlite:///")) as connection:
        return list(connection.iterdump())


def send(service, method, path, body=None, **headers):
    """A request, as it is: clients of more manners than this one tidy paths, and refuse to send what is no JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": service.http.headers["Authorization"]} | headers
    try:
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def refused(service, status, where, *request, **headers):
    before = stored(service)
    answered, body = send(service, *request, **headers)
    assert (answered, body["error"]["where"]) == (status, where), body
    assert body["error"]["message"]
    assert body["error"]["fix"]
    assert SECRET not in body["error"]["message"]
    assert stored(service) == before
    return body["error"]


def alive(service):
    """Whether a request is answered, and soon."""
    started = time.monotonic()
    assert send(service, "POST", SCORE, {"user": SECRET, "prompt": "p", "responses": ["r"]})[0] == 200
    return time.monotonic() - started < 5


NO_TEXTS = {
    "empty": "",
    "blank": " \t\n",
    "null": None,
    "number": 7,
    "list": [SECRET],
    "NUL": f"{SECRET}\0",
    "half of a surrogate pair": f"{SECRET}\ud83d",
}


@pytest.mark.parametrize("value", NO_TEXTS.values(), ids=NO_TEXTS)
def test_what_is_no_text_is_refused_in_every_field(service, value):
    for field in ("user", "prompt"):
        body = {"user": SECRET, "prompt": SECRET, "responses": [SECRET]} | {field: value}
        refused(service, 422, f"body.{field}", "POST", SCORE, body)
    refused(service, 422, "body.responses.1", "POST", SCORE, {"user": SECRET, "prompt": SECRET, "responses": [SECRET, value]})
    refused(service, 422, "body.query", "POST", RERANK, {"query": value, "documents": [SECRET]})
    for document in (value, {"text": value}):
        refused(service, 422, "body.documents.1", "POST", RERANK, {"query": SECRET, "documents": [SECRET, document]})
    choice = {"prompt": SECRET, "chosen": f"{SECRET} a", "rejected": f"{SECRET} b"}
    for field in choice:
        body = {"comparisons": [choice, choice | {field: value}]}
        refused(service, 422, f"body.comparisons.1.{field}", "POST", CHOICES, body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"user": "hush"',
        b"\xff\xfe\x00",
        b'{"user": "hush\xff"}',
        b"[" * 100_000,
        b'{"query": "hush", "documents": ["hush"], "top_n": ' + b"9" * 5000 + b"}",
        b"null",
        b"[]",
        b'"hush"',
        b"NaN",
    ],
    ids=["nothing", "a brace", "half", "binary", "not UTF-8", "too deep", "5,000 digits", "null", "list", "text", "NaN"],
)
@pytest.mark.parametrize("path", [SCORE, RERANK, CHOICES])
def test_what_is_no_request_is_refused(service, path, body):
    status, answer = send(service, "POST", path, body)
    assert status in (400, 422)
    refused(service, status, answer["error"]["where"], "POST", path, body)
    assert answer["error"]["where"].startswith("body")


LARGE = {"user": SECRET, "prompt": SECRET, "responses": ["x" * 10_000_000]}
CHOICE = {"prompt": SECRET, "chosen": f"{SECRET} a", "rejected": f"{SECRET} b"}


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        (SCORE, LARGE, "body"),
        (SCORE, {"user": SECRET, "prompt": SECRET, "responses": ["r"] * 10_000}, "body.responses"),
        (SCORE, {"user": SECRET, "prompt": SECRET, "responses": ["r", SECRET * 5001]}, "body.responses.1"),
        (RERANK, {"query": SECRET, "documents": ["r"] * 10_000}, "body.documents"),
        (CHOICES, {"comparisons": [CHOICE] * 65}, "body.comparisons"),
        (CHOICES, {"comparisons": [CHOICE, CHOICE | {"chosen": SECRET * 5001}]}, "body.comparisons.1.chosen"),
    ],
    ids=["10 MB", "10,000 responses", "a long response", "10,000 documents", "65 comparisons", "a long comparison"],
)
def test_too_much_is_refused(service, path, body, where):
    assert refused(service, 413, where, "POST", path, body)["type"] == "too_large"


def test_a_body_of_unknown_length_is_refused_once_it_is_too_long(service):
    before = stored(service)
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    headers = {"Authorization": service.http.headers["Authorization"], "Content-Type": "application/json"}
    connection.request("POST", SCORE, iter([b"x" * 65_536] * 160), headers, encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["where"]) == (413, "body")
    connection.close()
    assert stored(service) == before


ODD_TEXTS = [
    f"مرحبا بالعالم {SECRET} שלום",
    f"👩‍👩‍👧‍👦 {SECRET} 🏳️‍🌈 \u202e\u2066",
    f"'; DROP TABLE users; -- {SECRET}",
    f'" OR "1"="1 {SECRET}',
    f"../../../../etc/passwd#{SECRET}",
    f"..\\..\\{SECRET}%00",
    f"%2e%2e%2f{SECRET}",
    f"${{jndi:ldap://{SECRET}}} {{{{7*7}}}} %s %n",
    f"\r\nSet-Cookie: a={SECRET}",
]


@pytest.mark.parametrize("odd", ODD_TEXTS)
def test_any_text_is_only_a_text_in_every_string(service, odd):
    tenant = service.settings.tenant
    path = f"/v1/users/{quote(odd, safe='')}"
    choice = {"prompt": odd, "chosen": f"{odd} a", "rejected": f"{odd} b"}
    name = odd.encode("ascii", "replace").decode().replace("\r\n", " ")  # a header has no line breaks
    for _ in range(2):
        status, receipt = send(service, "POST", f"{path}/comparisons", {"comparisons": [choice]}, **{"Idempotency-Key": name})
        assert (status, receipt["user"], receipt["comparisons"]) == (200, odd, 1)
    (kept,) = service.store.comparisons(tenant, odd, limit=9)
    assert (kept.prompt, kept.chosen, kept.rejected) == tuple(choice.values())
    status, scored = send(service, "POST", SCORE, {"user": odd, "prompt": odd, "responses": [odd, odd]})
    assert (status, scored["user"], scored["personalisation"]) == (200, odd, "onboarded")
    ranking = {"user": odd, "query": odd, "documents": [odd, {"text": odd}], "model": odd, "return_documents": True, odd: odd}
    status, ranked = send(service, "POST", RERANK, ranking)
    assert (status, ranked["results"][0]["document"]) == (200, {"text": odd})
    refused(service, 401, "Authorization", "GET", path, Authorization=f"Bearer {name}")
    assert send(service, "DELETE", path) == (200, {"user": odd, "comparisons": 1})


@pytest.mark.parametrize(
    ("sent", "user"),
    [
        ("..", ".."),
        ("%2e%2e", ".."),
        (f"{SECRET}%2F..%2F..", f"{SECRET}/../.."),
        (f"{SECRET}%252F", f"{SECRET}%2F"),
        (f"{SECRET}%", f"{SECRET}%"),
        (f"{SECRET}+%20", f"{SECRET}+ "),
        (f"{SECRET};a=b", f"{SECRET};a=b"),
        (f"{SECRET}?user=another", SECRET),
    ],
)
def test_an_id_is_what_its_escapes_say_and_paths_are_not_tidied(service, sent, user):
    status, known = send(service, "GET", f"/v1/users/{sent}")
    assert (status, known["user"]) == (200, user)


@pytest.mark.parametrize(
    "path", ["/v1/users/", f"/v1/users/{SECRET}/../x", f"//v1/users/{SECRET}", "/v1/users/a/b/c", "/%2e%2e/"]
)
def test_a_path_that_leads_nowhere_is_not_found(service, path):
    refused(service, 404, f"GET {path}", "GET", path)


@pytest.mark.parametrize("name", ["none", "another scheme", "unknown", "empty", "expired", "revoked", "not ASCII"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", SCORE, {"user": SECRET, "prompt": SECRET, "responses": [SECRET]}),
        ("POST", RERANK, {"query": SECRET, "documents": [SECRET]}),
        ("POST", "/v2/rerank", {"query": SECRET, "documents": [SECRET]}),
        ("POST", CHOICES, {"comparisons": [CHOICE]}),
        ("GET", f"/v1/users/{SECRET}/next-comparison", None),
        ("GET", f"/v1/users/{SECRET}", None),
        ("DELETE", f"/v1/users/{SECRET}", None),
        ("GET", "/v1/bundle", None),
    ],
)
def test_without_a_good_key_nothing_is_told_or_done(service, name, method, path, body):
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)
    record, revoked = service.store.create_key("default", ["admin"], name="test", expires=None)
    service.store.revoke_key(record.id)
    keys = {
        "none": "",
        "another scheme": "Basic aHVzaDpodXNo",
        "unknown": f"Bearer penchant_{SECRET}",
        "empty": "Bearer ",
        "expired": f"Bearer {service.key('admin', expires=past)}",
        "revoked": f"Bearer {revoked}",
        "not ASCII": "Bearer h\xfcsh",
    }
    refused(service, 401, "Authorization", method, path, body, Authorization=keys[name])


def half_sent(service, *, length=1000):
    """A connection on which a body has begun."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=30)
    key = service.http.headers["Authorization"]
    head = f"POST {CHOICES} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + b'{"comparisons": [{"prompt": "hush')
    return connection


def test_slow_bodies_hold_nobody_up_and_are_given_up(service):
    before = stored(service)
    slow = [half_sent(service) for _ in range(40)]
    assert alive(service)
    for connection in slow:
        answer = connection.makefile("rb").read()  # to the end: the connection is closed, too
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"where":"body"' in answer
        connection.close()
    assert stored(service) == before


def test_a_body_that_comes_drop_by_drop_is_given_up_too(service):
    connection, started = half_sent(service, length=100_000), time.monotonic()
    connection.settimeout(0.05)
    answer = b""
    while not answer:
        assert time.monotonic() - started < 20 * BODY_SECONDS
        connection.sendall(b"x")
        try:
            answer = connection.recv(1000)
        except TimeoutError:
            continue
    assert answer.startswith(b"HTTP/1.1 408 ")
    connection.close()


def test_bodies_that_end_too_soon_and_half_sent_heads_leave_no_trace(service):
    before = stored(service)
    for _ in range(40):
        half_sent(service).close()
    heads = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(40)]
    for connection in heads:
        connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: hu")
    assert alive(service)
    for connection in heads:
        connection.close()
    assert alive(service)
    assert stored(service) == before


def test_a_client_that_does_not_wait_for_its_answer_leaves_the_service_well(service):
    body = json.dumps({"user": SECRET, "prompt": SECRET, "responses": [SECRET]}).encode()
    key = service.http.headers["Authorization"]
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", service.port))
        head = f"POST {SCORE} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        connection.close()
    assert alive(service)
