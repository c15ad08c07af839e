"""The service as a stranger starts it: `penchant serve` in its own process, over HTTP, with real clients and a real browser."""

import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from penchant.client import Client, Comparison

pytestmark = pytest.mark.e2e

CHOICE = Comparison("Explain tides.", chosen="Step one: look up.", rejected="What a lovely question, dear reader!")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment():
    """As a stranger has it: Ray's clusters ask for a token."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    return kept | {"RAY_AUTH_TOKEN": "0" * 64, "COLUMNS": "200"}


class Served:
    """`penchant serve`, running."""

    def __init__(self, bundle, folder):
        self.port, self.log = free_port(), folder / "serve.log"
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "penchant.cli", "serve", "--bundle", str(bundle), "--port", str(self.port)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--store", f"sqlite:///{folder}/users.db", "scorer.num_cpus=0.5", "scorer.max_replicas=1"],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment(),
            )
        deadline = time.monotonic() + 150
        while not (found := re.search(r"^key: (\S+)$", self.log.read_text(), re.M)):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        self.key = found[1]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def served(bundle, folder):
    served = Served(bundle[0], folder)
    yield served
    if served.process.poll() is None:
        served.stop()


def test_the_printed_line_works_and_the_service_is_ready(served):
    log = served.log.read_text()
    assert httpx.get(f"{served.url}/readyz").text == "ready\n"
    line = re.search(r"try:  (curl .*)$", log, re.M)[1]
    answer = subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout
    assert '"personalisation":"seen"' in answer
    assert "127.0.0.1" in log


def test_a_new_user_is_onboarded_over_http_and_odd_ids_pass_the_proxy(served):
    with Client(served.url, served.key) as client:
        for user in ("ana", "a/b %2F ü"):
            assert client.score(user, "Explain tides.", ["One.", "Two."]).personalisation == "unknown"
            assert client.next_comparison(user) is not None
            stored = client.add_comparisons(user, [CHOICE])
            assert (stored.comparisons, stored.personalisation) == (1, "onboarded")
            assert client.score(user, "Explain tides.", ["One.", "Two."]).personalisation == "onboarded"
        assert client.forget("a/b %2F ü") == 1
        assert client.user("a/b %2F ü").personalisation == "unknown"


def test_bad_input_is_refused_behind_the_proxy_and_ids_pass_it_untouched(served):
    def send(method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        connection.request(method, path, body, {"Authorization": f"Bearer {served.key}", "Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def score(body=b'{"user": "a", "prompt": "p", "responses": ["r"]}'):
        return send("POST", "/v1/score", body)

    status, answer = score(b'{"user": "' + b"x" * 10_000_000)
    assert (status, answer["error"]["where"]) == (413, "body")
    for sent, user in (("..", ".."), ("%2e%2e%2fb", "../b"), ("a%252Fb", "a%2Fb")):
        assert send("GET", f"/v1/users/{sent}")[1]["user"] == user
    halves = [socket.create_connection(("127.0.0.1", served.port), timeout=60) for _ in range(40)]
    for half in halves:
        half.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    started = time.monotonic()
    assert score()[0] == 200
    assert time.monotonic() - started < 9, "slow clients, who have 10 s, hold up others"
    for half in halves[:20]:
        half.close()
    for half in halves[20:]:
        assert half.makefile("rb").readline().split()[1] == b"408"
        half.close()
    assert score()[0] == 200


def test_coheres_own_client_ranks_for_a_user(served):
    import cohere

    client = cohere.ClientV2(api_key=served.key, base_url=served.url)
    documents = ["Step one: begin.", "What a lovely question, dear reader!", "Be careful."]
    answer = client.rerank(
        model="any",
        query="Explain tides.",
        documents=documents,
        top_n=2,
        request_options={"additional_body_parameters": {"user": "user-0001"}},
    )
    assert len(answer.results) == 2
    with Client(served.url, served.key) as own:
        scores = own.score("user-0001", "Explain tides.", documents).scores
    assert answer.results[0].index == max(range(3), key=lambda row: scores[row])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_the_page_learns_from_answers_in_a_real_browser(served):
    from playwright.sync_api import expect, sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        troubles = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(f"{served.url}/#key={served.key}")
        expect(page.locator("#status")).to_have_attribute("data-personalisation", "unknown", timeout=20_000)
        assert "key" not in page.url
        for count in (1, 2):
            expect(page.locator("#choose-a")).to_have_attribute("aria-disabled", "false", timeout=20_000)
            page.locator("#choose-a").click() if count == 1 else page.keyboard.press("b")
            expect(page.locator("#status")).to_have_attribute("data-answers", str(count), timeout=20_000)
        expect(page.locator("#status")).to_have_attribute("data-personalisation", "onboarded")
        everyone, own = (page.locator(f"#{name} li").count() for name in ("everyone", "you"))
        assert everyone == own > 0
        if shots := os.environ.get("PENCHANT_SHOTS"):
            page.screenshot(path=f"{shots}/playground.png")
        browser.close()
    assert not troubles


def roll(*arguments):
    command = [sys.executable, "-m", "penchant.cli", "roll", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


@pytest.mark.slow
def test_bundles_roll_under_requests_and_a_corrupt_one_changes_nothing(served, bundle, tmp_path):
    corrupt = shutil.copytree(bundle[0], tmp_path / "corrupt")
    largest = max((path for path in corrupt.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"!")
    copy = shutil.copytree(bundle[0], tmp_path / "copy")
    failed, over = [], threading.Event()
    address = re.search(r"^roll: penchant roll --address (\S+)", served.log.read_text(), re.M)[1]

    def score():
        with Client(served.url, served.key, retries=0) as client:
            # Half of the users have the canary, and lose it again.
            for number in itertools.count():
                if over.is_set():
                    return
                try:
                    client.score(f"user {number % 20}", "Explain tides.", ["One.", "Two."])
                except Exception as error:
                    failed.append(error)

    asking = threading.Thread(target=score)
    asking.start()
    try:
        refused = roll("--bundle", corrupt)
        assert refused.returncode == 2, refused.stdout
        assert largest.name in refused.stderr
        rolled = roll("--bundle", copy, "--canary", "0.5", "--address", address)
        assert rolled.returncode == 0, rolled.stderr
        assert f"now: {bundle[0].resolve()}, and {copy} for 50% of the users" in rolled.stdout
        ended = roll("--bundle", copy, "--address", address)
        assert ended.returncode == 0, ended.stderr
        assert f"now: {copy}\n" in ended.stdout
    finally:
        over.set()
        asking.join()
    assert not failed


def test_it_stops_cleanly_and_what_was_acknowledged_is_there_after_a_restart(served, bundle, folder):
    with Client(served.url, served.key) as client:
        client.add_comparisons("kept", [CHOICE])
    assert served.stop() == 0, served.log.read_text()
    assert "Stopping." in served.log.read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/healthz")
    again = Served(bundle[0], folder)
    try:
        with Client(again.url, again.key) as client:
            known = client.user("kept")
            assert (known.comparisons, known.personalisation) == (1, "onboarded")
    finally:
        assert again.stop() == 0


def test_a_roll_without_a_service_says_so(tmp_path):
    assert "Give --bundle or --end-canary" in roll().stderr
    assert "A share lies between 0 and 1" in roll("--bundle", tmp_path, "--canary", "2").stderr
    assert roll("--end-canary", "--address", "127.0.0.1:1").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bundle", "nowhere"], "nowhere"),
        (["--bundle", "BUNDLE", "scorer.replicas=2"], "scorer"),
        (["--bundle", "BUNDLE", "--store", "mysql://localhost/x"], "mysql"),
    ],
)
def test_bad_arguments_say_what_before_anything_starts(bundle, tmp_path, arguments, words):
    chosen = [str(bundle[0]) if argument == "BUNDLE" else argument for argument in arguments]
    command = [sys.executable, "-m", "penchant.cli", "serve", *chosen]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "error" in ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
