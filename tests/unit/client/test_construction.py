"""How both clients are made, and what they have in common."""

import asyncio
import inspect
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from penchant import client as package
from penchant.client import AsyncClient, Client
from penchant.errors import ConfigError

KEY = "penchant_secret-of-the-test"
CALLS = {"score", "rerank", "add_comparisons", "next_comparison", "user", "forget"}


@pytest.mark.parametrize("kind", [Client, AsyncClient])
class TestConstruction:
    def test_the_key_is_the_environments(self, kind, monkeypatch):
        monkeypatch.setenv("PENCHANT_KEY", f"{KEY}\n")
        assert kind()._http.headers["Authorization"] == f"Bearer {KEY}"
        assert kind(key="other")._http.headers["Authorization"] == "Bearer other"

    def test_no_key(self, kind, monkeypatch):
        monkeypatch.delenv("PENCHANT_KEY", raising=False)
        with pytest.raises(ConfigError, match="Set PENCHANT_KEY"):
            kind()

    @pytest.mark.parametrize("key", ["", "  ", "se cret", "se\ncret", "s\u00e9cret"])
    def test_a_key_that_is_none_is_refused_and_not_shown(self, kind, key):
        with pytest.raises(ConfigError) as caught:
            kind(key=key)
        assert not key.strip() or key not in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["service", "ftp://service", "http://", "http://service?a=b", "http://a\x00b", "http://a:99999", 7]
    )
    def test_a_url_that_is_none(self, kind, url):
        with pytest.raises(ConfigError, match="url"):
            kind(url, KEY)

    def test_a_password_in_the_url_is_refused_and_not_shown(self, kind):
        with pytest.raises(ConfigError) as caught:
            kind("http://me:hidden@service", KEY)
        assert "hidden" not in str(caught.value)

    @pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}])
    def test_options_that_cannot_be_used(self, kind, options):
        with pytest.raises(ConfigError, match=next(iter(options))):
            kind(key=KEY, **options)

    def test_repr_does_not_show_the_key(self, kind):
        shown = kind("http://service.test/", KEY)
        assert repr(shown) == f"{kind.__name__}(url='http://service.test', retries=5)"
        assert KEY not in repr(vars(shown))


@pytest.mark.parametrize(
    ("url", "proxied"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://localhost:8000", False),
        ("http://[::1]:8000", False),
        ("http://service.test", True),
        ("http://127.service.test", True),
        ("https://localhost:8000", True),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(kind, url, proxied, monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://proxy.test:3128")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    http = kind(url, KEY)._http
    assert (http._transport_for_url(httpx.URL(url)) is not http._transport) is proxied


def test_context_managers_close():
    with Client(key=KEY) as client:
        assert not client._http.is_closed
    assert client._http.is_closed

    async def run():
        async with AsyncClient(key=KEY) as asynchronous:
            assert not asynchronous._http.is_closed
        return asynchronous._http.is_closed

    assert asyncio.run(run())


def test_both_clients_have_the_same_methods():
    def shape(kind, name):
        return [(each.name, each.default, each.kind) for each in inspect.signature(getattr(kind, name)).parameters.values()]

    names = [name for name in vars(Client) if not name.startswith("_")]
    assert set(names) == {*CALLS, "ready", "close"}
    for name in [*names, "__init__"]:
        assert shape(Client, name) == shape(AsyncClient, name)
        assert name == "__init__" or inspect.iscoroutinefunction(getattr(AsyncClient, name))


def test_all_that_is_exported_is_there():
    assert all(hasattr(package, name) for name in package.__all__)


def test_ids_cross_the_wire_as_they_were_escaped():
    lines = []

    class Handler(BaseHTTPRequestHandler):
        def do_DELETE(self):
            lines.append(self.path)
            body = b'{"user": "", "comparisons": 3}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with Client(f"http://127.0.0.1:{server.server_port}/under/", KEY) as client:
                assert [client.forget(user) for user in ("a/b", "..", "%", "\N{CAT FACE}")] == [3, 3, 3, 3]
        finally:
            server.shutdown()
            thread.join()
    assert lines == [f"/under/v1/users/{path}" for path in ("a%2Fb", "%2E%2E", "%25", "%F0%9F%90%B1")]


def test_importing_the_client_imports_neither_the_model_nor_the_service():
    heavy = ["torch", "ray", "fastapi", "numpy", "pyarrow", "transformers", "trl", "pydantic"]
    code = f"import sys, penchant.client, penchant.client.trl; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
