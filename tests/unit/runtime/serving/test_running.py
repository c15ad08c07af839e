"""How a service that starts is waited for, and what it takes with it when it stops; Ray is played."""

import http.server
import threading
from types import SimpleNamespace

import pytest

from penchant.runtime import cluster
from penchant.runtime.serving import running


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
