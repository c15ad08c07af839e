"""How a service that starts is waited for, and what it takes with it when it stops; Ray is played."""

import http.server
import threading
from types import SimpleNamespace

import pytest

from penchant.errors import ConfigError
from penchant.runtime import cluster
from penchant.runtime.serving import running
from penchant.runtime.serving.config import ServiceSettings


def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(monkeypatch):
    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(running, "_READY_SECONDS", 2.0)
    with http.server.HTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running._wait_until_ready(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.mark.parametrize(("alone", "done"), [(True, ["all"]), (False, ["penchant"])])
def test_on_a_cluster_of_others_our_application_alone_is_deleted(monkeypatch, alone, done):
    ended = []
    monkeypatch.setattr(running, "serve", SimpleNamespace(shutdown=lambda: ended.append("all"), delete=ended.append))
    monkeypatch.setattr(running, "ray", SimpleNamespace(shutdown=lambda: None))
    running.RunningService("http://here", "here:1", alone=alone).stop()
    assert ended == done


@pytest.mark.parametrize(("address", "elsewhere", "started"), [(None, None, True), (None, "auto", False), ("auto", None, False)])
def test_a_cluster_that_was_joined_is_not_ours(monkeypatch, address, elsewhere, started):
    if elsewhere is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", elsewhere)
    monkeypatch.setattr(cluster, "os", SimpleNamespace(environ=dict(cluster.os.environ)))
    monkeypatch.setattr(cluster, "ray", SimpleNamespace(is_initialized=lambda: False, init=lambda **_: None))
    assert cluster.start_ray(address) is started


@pytest.mark.parametrize("taken", [True, False])
def test_a_service_that_runs_is_not_replaced_nor_taken_down(monkeypatch, taken):
    done = []
    played = SimpleNamespace(
        status=lambda: SimpleNamespace(applications={running.SERVICE_NAME: "RUNNING"} if taken else {"theirs": "RUNNING"}),
        start=lambda **_: done.append("start"),
        run=lambda *_, **__: done.append("run"),
        delete=lambda name: done.append(name),
    )
    monkeypatch.setattr(running, "serve", played)
    monkeypatch.setattr(running, "build", lambda settings: None)
    monkeypatch.setattr(running, "start_ray", lambda *_, **__: False)
    monkeypatch.setattr(running, "_wait_until_ready", lambda url: None)
    monkeypatch.setattr(running, "ray", SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(gcs_address="here:1")))
    start = lambda: running.run_service(ServiceSettings(bundle="b"), host="127.0.0.1", port=1, address="here:1")  # noqa: E731
    if taken:
        with pytest.raises(ConfigError, match="runs there already"):
            start()
        assert done == []
    else:
        start()
        assert done == ["start", "run"]
