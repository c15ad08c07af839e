"""Personal answers as a stranger has them: `penchant serve` over a base and a store of adapters, asked by OpenAI's own client."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MESSAGES = [{"role": "user", "content": "explain the tides"}]
USERS = ["ann", "bob", "carl/ä", "nobody"]


class Served:
    """`penchant serve` of a base and a store of adapters, running."""

    def __init__(self, folder, writer, *more):
        shutil.copytree(writer, folder, dirs_exist_ok=True)
        self.log, self.store = folder / "serve.log", folder / "store"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "penchant.cli", "serve", "--base", str(folder / "base"), "--adapters", str(self.store)]
        command += ["--port", str(port), "--store", f"sqlite:///{folder}/users.db"]
        kept = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *more, "generator.num_cpus=0.5", "generator.max_replicas=1"],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=kept | {"RAY_AUTH_TOKEN": "0" * 64, "COLUMNS": "200"},
            )
        deadline = time.monotonic() + 150
        while not (found := re.search(r"^key: (\S+)$", self.log.read_text(), re.M)):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        self.key = found[1]

    def client(self, **settings):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, **settings)

    def generator(self):
        """The process of the writing replica."""
        (replica,) = [
            process
            for process in psutil.Process(self.process.pid).children(recursive=True)
            if " ".join(process.cmdline()).startswith("ray::ServeReplica:penchant:Generator")
        ]
        return replica

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def served(tmp_path_factory, personal_writer):
    served = Served(tmp_path_factory.mktemp("chat"), personal_writer)
    yield served
    if served.process.poll() is None:
        served.stop()


def answer(client, user, **settings):
    asked = {"model": "penchant", "messages": MESSAGES, "user": user, "temperature": 0, "max_tokens": 8}
    return client.chat.completions.create(**(asked | settings))


def text(client, user, **settings):
    return answer(client, user, **settings).choices[0].message.content


def test_the_printed_line_works_and_each_user_has_their_own_answers(served):
    line = re.search(r"^chat: (curl .*)$", served.log.read_text(), re.M)[1]
    said = subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout
    assert '"personalisation":"task"' in said
    assert httpx.get(f"{served.url}/readyz").text == "ready\n"
    with served.client() as client:
        alone = {user: text(client, user) for user in USERS}
        assert len(set(alone.values())) == 4
        with ThreadPoolExecutor(12) as threads:
            together = list(threads.map(lambda user: text(client, user), USERS * 6))
        assert together == [alone[user] for user in USERS * 6]
        chunks = list(answer(client, "ann", stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == alone["ann"]
        assert len(chunks) > 4
        assert chunks[-1].usage.completion_tokens == 8


def test_without_a_bundle_scores_are_not_found_and_several_answers_are_not_ranked(served):
    headers = {"Authorization": f"Bearer {served.key}"}
    body = {"user": "ann", "prompt": "p", "responses": ["r"]}
    refused = httpx.post(f"{served.url}/v1/score", json=body, headers=headers)
    assert (refused.status_code, refused.json()["error"]["where"]) == (404, "bundle")
    with served.client() as client:
        assert answer(client, "ann", n=2).penchant["ranking"]["by"] == "generation"


def test_errors_of_the_replica_reach_openais_client(served):
    with served.client(max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="exceed the model's 512"):
            answer(client, "ann", max_tokens=510)
        with pytest.raises(openai.PermissionDeniedError, match="is encrypted"):
            answer(client, "locked")
        opened = answer(client, "locked", extra_headers={"X-Adapter-Key": (b"k" * 32).hex()})
        assert opened.penchant["personalisation"] == "own"


def test_a_corrupt_adapter_is_its_users_trouble_and_a_forgotten_one_is_gone(served):
    with served.client() as client:
        ann = text(client, "ann")
        (card,) = [path for path in served.store.glob("adapters/*/*/card.json") if '"bob"' in path.read_text()]
        tensors = card.with_name("adapter_model.safetensors")
        tensors.write_bytes(tensors.read_bytes()[:-1])
        os.utime(card.parent)  # as whoever replaces an adapter leaves it
        with pytest.raises(openai.InternalServerError, match="adapter is damaged"):
            answer(client, "bob")
        assert text(client, "ann") == ann
        httpx.delete(f"{served.url}/v1/users/bob", headers={"Authorization": f"Bearer {served.key}"})
        assert answer(client, "bob").penchant["personalisation"] == "task"
        assert not card.exists()


def test_after_kill_9_of_the_replica_that_writes_it_is_told_and_comes_back(served):
    replica = served.generator()
    with served.client(max_retries=0) as client:
        before = text(client, "ann")
        stream = answer(client, "carl/ä", stream=True, max_tokens=500, n=8)  # whose greedy answer does not end by itself
        next(stream)
        replica.kill()
        with pytest.raises(openai.APIError, match="No replica could answer"):
            list(stream)
    with served.client(max_retries=8) as client:
        assert text(client, "ann") == before
    assert served.generator().pid != replica.pid


def test_it_stops_cleanly(served):
    assert served.stop() == 0, served.log.read_text()


@pytest.fixture(scope="module")
def both(tmp_path_factory, personal_writer, bundle):
    settings = ["--bundle", str(bundle[0]), "scorer.num_cpus=0.5", "scorer.max_replicas=1"]
    served = Served(tmp_path_factory.mktemp("both"), personal_writer, *settings)
    yield served
    served.stop()


def test_with_a_bundle_too_several_answers_come_in_the_order_of_the_users_own_reward(both):
    headers = {"Authorization": f"Bearer {both.key}"}
    pair = {"prompt": "explain the tides", "chosen": "Step one: look up.", "rejected": "What a lovely question, dear reader!"}
    with both.client() as client:
        unheard = answer(client, "ann", n=4, temperature=1)
        assert unheard.penchant["ranking"]["personalisation"] == "unknown"
        stored = httpx.post(f"{both.url}/v1/users/ann/comparisons", json={"comparisons": [pair]}, headers=headers)
        assert stored.json()["personalisation"] == "onboarded", stored.text
        said = answer(client, "ann", n=4, temperature=1)
    assert said.penchant["personalisation"] == "own"
    ranking = said.penchant["ranking"]
    assert (ranking["by"], ranking["personalisation"]) == ("reward", "onboarded")
    texts = [choice.message.content for choice in said.choices]
    body = {"user": "ann", "prompt": "explain the tides", "responses": texts}
    scores = httpx.post(f"{both.url}/v1/score", json=body, headers=headers).json()
    own = [score["score"] for score in scores["scores"]]
    assert own == sorted(own, reverse=True)
    assert len(set(texts)) > 1
    assert [choice.penchant["score"] for choice in said.choices] == pytest.approx(own, abs=1e-5)
