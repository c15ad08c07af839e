"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
import warnings
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.autoscaler.sdk import request_resources
from rich.console import Console

from penchant.errors import TrainingError

DRIVER_CPUS = "driver_cpus"
"""Under this name a submitted job's metadata have the cores that its own process holds."""
_POLL_SECONDS = 1.0


def start_ray(address: str | None = None, *, num_cpus: int | None = None) -> bool:
    """Joins a running Ray cluster, or starts one on this machine; it lives as long as this process. Idempotent.

    The ports of one that is started listen on every interface, and ask for this user's token (`RAY_AUTH_MODE`).

    Returns whether it started one, which then is nobody else's.

    Args:
        address: Of the cluster to join; by default `RAY_ADDRESS`, which a submitted job has. Without either one is started.
        num_cpus: Cores that Ray counts on a machine where it is started; by default those that are there.

    Raises:
        TrainingError: There is no cluster at the address.
    """
    if ray.is_initialized():
        return False
    # Left to itself, Ray would join whatever cluster was started last on this machine, or wait minutes for one that is gone.
    found = address or os.environ.get("RAY_ADDRESS") or "local"
    where = f"--address {address}" if address else f"RAY_ADDRESS={found}"
    if found != "local":
        _check_reachable(found, where)
        place = _host_and_port(found)
        show_token(place[0] if place else "")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A report waits for the controller's next look; its default is 2 s (measured: 2 s a report, 0.2 s with this).
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Ray starts workers at 15, so that whatever else runs goes before training (measured: a graph step took 1.07 times that of a
    # plain process, and 1.02 with this).
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A worker that hangs does not take its leave either.
    os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "10")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    local: dict[str, Any] = {"include_dashboard": False, "num_cpus": num_cpus} if found == "local" else {}
    try:
        # Ray's own messages repeat what the progress bar shows; errors reach us as exceptions.
        ray.init(address=found, logging_level=logging.ERROR, log_to_driver=False, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if found == "local":
            raise
        raise TrainingError(
            f"There is no Ray cluster to join ({error}).",
            where=where,
            fix="Check the address; if the cluster asks for tokens, set RAY_AUTH_MODE=token (`ray start` says so).",
        ) from error
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    return found == "local"


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return (host, int(port)) if port.isdigit() else None


def show_token(host: str) -> None:
    """Has Ray show this user's token (`~/.ray/auth_token`), if there is one, to a cluster at a host of this machine.

    Such a cluster asks for it unless it was told not to. Ray itself shows it to one that it finds, but not at a given address,
    which might be a stranger's.
    """
    if _is_here(host):
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _is_here(host: str) -> bool:
    """Whether it is a host of this machine: one that a socket can be bound to."""
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind((host, 0))
        return bool(host)
    return False


def wait_for_resources(kind: str, count: int, *, seconds: float, console: Console) -> None:
    """Asks an autoscaled cluster for so many `CPU` or `GPU`, and waits until they are there, or for so many seconds.

    The request is taken back then: whoever runs on the nodes keeps them.
    """

    def lacking() -> bool:
        return float(ray.cluster_resources().get(kind, 0)) < count

    if not seconds or not lacking():
        return
    request_resources(bundles=[{kind: 1}] * count)
    until = time.monotonic() + seconds
    with console.status(f"Waiting for {count} {kind}s"):
        while lacking() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
    request_resources(bundles=[])


def driver_cores() -> float:
    """Cores that Ray counts as held by this process itself, on its machine: what `penchant submit --driver-cpus` says, else 0."""
    config = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR) or "{}")
    return float(config.get("metadata", {}).get(DRIVER_CPUS, 0))


def _check_reachable(address: str, where: str) -> None:
    """Ray itself tries for minutes before it says that nobody is there."""
    place = _host_and_port(address)
    if place is None:
        return
    try:
        socket.create_connection(place, timeout=5).close()
    except OSError as error:
        raise TrainingError(
            f"Nobody answers there ({error}).", where=where, fix="Check the address, and that the cluster is up."
        ) from None
