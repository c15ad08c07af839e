"""Running the service on this machine, or on a cluster that is there, until it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
import urllib.error
import urllib.request

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from penchant.errors import ConfigError, TrainingError
from penchant.runtime.cluster import start_ray
from penchant.runtime.serving.application import build
from penchant.runtime.serving.config import ServiceSettings

SERVICE_NAME = "penchant"
"""Of the application in Ray Serve."""
_READY_SECONDS = 180.0


class RunningService:
    """A service that answers.

    Args:
        url: Where.
        cluster: The address of its Ray cluster, by which `roll` finds it.
        alone: Whether the cluster was started for it.
    """

    def __init__(self, url: str, cluster: str, *, alone: bool) -> None:
        self.url, self.cluster, self.alone = url, cluster, alone
        self._stopped = threading.Event()

    def wait(self) -> None:
        """Until `stop` is called, or the process is interrupted."""
        while not self._stopped.wait(1.0):
            pass

    def stop(self) -> None:
        """Stops answering, lets requests in work end, and gives the machine back."""
        self._stopped.set()
        _take_down(alone=self.alone)
        ray.shutdown()


def run_service(settings: ServiceSettings, *, host: str, port: int, address: str | None = None) -> RunningService:
    """Starts the service and returns once it can score.

    Raises:
        ConfigError: The port is taken, a service runs on that cluster already, or the settings cannot be served.
        ArtifactError: There is no bundle, or no store of adapters.
        TrainingError: There is no cluster at the address, or no replica became ready.
    """
    if address is None:
        _check_free(host, port)
    application = build(settings)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    alone = start_ray(address, num_cpus=None if address else _logical_cpus(settings))
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if not alone:
        _check_absent(address)
    serve.start(http_options={"host": host, "port": port}, logging_config=LoggingConfig(enable_access_log=False))
    try:
        serve.run(application, name=SERVICE_NAME, route_prefix="/")
        _wait_until_ready(url)
    except (RuntimeError, TimeoutError) as error:
        _take_down(alone=alone)
        raise TrainingError(
            f"The service did not become ready ({str(error).splitlines()[-1][:300]}).",
            where="penchant serve",
            fix="Look into the replica's log under /tmp/ray/session_latest/logs/serve. Where Ray Serve runs already, give the "
            "--host and --port that it listens at.",
        ) from error
    return RunningService(url, ray.get_runtime_context().gcs_address, alone=alone)


def _check_absent(address: str | None) -> None:
    """Refuses to take the place of a service that runs, which would go down with this command too."""
    if SERVICE_NAME in serve.status().applications:
        raise ConfigError(
            "A service runs there already.",
            where=f"--address {address or os.environ.get('RAY_ADDRESS')}",
            fix="Roll another bundle into it with `penchant roll`, or end it first: serve.delete('penchant').",
        )


def _take_down(*, alone: bool) -> None:
    """Ends Ray Serve where the cluster is ours alone; on another our application, and not those of others."""
    with contextlib.suppress(RayError, RayServeException, TimeoutError):  # it is gone already
        if alone:
            serve.shutdown()
        else:
            serve.delete(SERVICE_NAME)


def _logical_cpus(settings: ServiceSettings) -> int:
    """What Ray is told that this machine has. It counts cores to place actors on machines; here the kernel shares them.

    Enough for all replicas twice: a new bundle's are up before the old one's stop.
    """
    several = [settings.scorer, *([settings.generator] if settings.generator is not None else [])]
    models = sum(max(each.min_replicas, each.max_replicas) * each.num_cpus for each in several)
    wanted = 2 * (2 * models + settings.api_replicas)
    return max(os.cpu_count() or 1, math.ceil(wanted))


def _check_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"It cannot listen there ({error.strerror}).", where=f"{host}:{port}", fix="Give another --port."
            ) from None


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    # Whatever http_proxy says: a proxy elsewhere does not reach this machine's own address.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError):
            if direct.open(f"{url}/readyz", timeout=5).status == 200:
                return
        time.sleep(0.2)
    raise TimeoutError(f"{url}/readyz did not answer 200 in {_READY_SECONDS:.0f} s")
