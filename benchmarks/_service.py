"""`penchant serve` in a process of its own, for benchmarks: started, asked, measured, killed."""

import argparse
import collections
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments of a benchmark over a bundle; `ready` makes the default one."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--bundle", type=ready, default="runs/demo/bundle")
    return made


def ready(bundle: str) -> Path:
    """A bundle's folder; that of `make demo` is made if it is not there."""
    if bundle == "runs/demo/bundle" and not Path(bundle).exists():
        subprocess.run([sys.executable, "-m", "penchant.cli", "demo"], check=True)
    if not (Path(bundle) / "manifest.json").is_file():
        raise argparse.ArgumentTypeError(f"there is no bundle in {bundle}: penchant fit writes one to OUT/bundle")
    return Path(bundle)


class Service:
    """The service over a bundle and a store of its own, on a free port of this machine.

    Args:
        bundle: Its folder.
        folder: For the store and the log.
        settings: Dotted overrides.
        store: The user store's URL; by default a file in the folder.
    """

    def __init__(self, bundle: Path, folder: Path, *settings: str, store: str | None = None) -> None:
        self.bundle, self.folder, self.settings = bundle, folder, settings
        folder.mkdir(parents=True, exist_ok=True)
        self.store = store or f"sqlite:///{folder.resolve()}/users.db"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def start(self) -> None:
        """Returns once it has printed its key."""
        command = [sys.executable, "-m", "penchant.cli", "serve", "--bundle", str(self.bundle), "--port", str(self.port)]
        path = self.folder / "serve.log"
        with path.open("w") as log:
            arguments = [*command, "--store", self.store, *self.settings]
            self.process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"COLUMNS": "200"})
        while not (found := re.search(r"^key: (\S+)$", path.read_text(), re.M)):
            if self.process.poll() is not None:
                raise RuntimeError(path.read_text())
            time.sleep(0.2)
        self.key = found[1]
        self.cluster = re.search(r"^roll: penchant roll --address (\S+)", path.read_text(), re.M)[1]

    def stop(self) -> None:
        """As Ctrl-C does."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)

    def kill(self) -> None:
        """Kill -9 of every process of the service at once."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas."""
        title = f"ray::ServeReplica:penchant:{deployment}"
        return [process for process in self._processes() if _title(process).startswith(title)]

    def _processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def connect(self) -> "Connection":
        """A connection that is kept open."""
        return Connection(self.port, self.key)

    def __enter__(self) -> "Service":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Connection:
    """One HTTP connection; opened again after a failure."""

    def __init__(self, port: int, key: str, timeout: float = 30) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict, http.client.HTTPMessage]:
        """Status (0 where there was no answer), body and headers."""
        try:
            self._http.request(method, path, None if body is None else json.dumps(body), self._headers | headers)
            answer = self._http.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self._http.close()
            return 0, {}, http.client.HTTPMessage()
        try:
            return answer.status, json.loads(content), answer.headers
        except ValueError:
            return answer.status, {}, answer.headers


@dataclass
class Load:
    """What several clients saw."""

    seconds: list[float] = field(default_factory=list)
    model_seconds: list[float] = field(default_factory=list)
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    bundles: list[tuple[float, str]] = field(default_factory=list)
    elapsed: float = 0.0

    def failed(self) -> int:
        """Requests that were not answered 200."""
        return len(self.seconds) - self.statuses[200]

    def quantile(self, share: float) -> float:
        """Of the time of a request, in milliseconds."""
        return 1000 * float(np.quantile(self.seconds, share))


def run_clients(service: Service, clients: int, work) -> Load:
    """`work(connection, number, load)` in threads, at once; `load` is shared."""
    load = Load()
    threads = [threading.Thread(target=work, args=(service.connect(), number, load)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.elapsed = time.perf_counter() - started
    return load


def ask(connection: Connection, load: Load, method: str, path: str, body: object = None, **headers: str) -> dict:
    """One request, noted."""
    started = time.perf_counter()
    status, content, answered = connection.request(method, path, body, **headers)
    load.seconds.append(time.perf_counter() - started)
    load.statuses[status] += 1
    timing = re.search(r"model;dur=([\d.]+)", answered.get("Server-Timing", ""))
    if timing:
        load.model_seconds.append(float(timing[1]) / 1000)
    if "bundle" in content:
        load.bundles.append((time.perf_counter(), content["bundle"]))
    return content
