"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from typing import Any

import ray

from penchant.errors import TrainingError


def start_ray(address: str | None = None, *, num_cpus: int | None = None) -> None:
    """Joins a running Ray cluster, or starts one on this machine; it lives as long as this process. Idempotent.

    Args:
        address: Of the cluster to join; by default `RAY_ADDRESS`, which a submitted job has. Without either one is started.
        num_cpus: Cores that Ray counts on a machine where it is started; by default those that are there.

    Raises:
        TrainingError: There is no cluster at the address.
    """
    if ray.is_initialized():
        return
    if address is not None:
        _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A report waits for the controller's next look; its default is 2 s (measured: 2 s a report, 0.2 s with this).
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    # Left to itself, Ray would join whatever cluster was started last on this machine, or wait minutes for one that is gone.
    found = address or os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = {"include_dashboard": False, "num_cpus": num_cpus} if found == "local" else {}
    try:
        # Ray's own messages repeat what the progress bar shows; errors reach us as exceptions.
        ray.init(address=found, logging_level=logging.ERROR, log_to_driver=False, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is None:
            raise
        raise TrainingError(
            f"There is no Ray cluster to join ({error}).",
            where=f"--address {address}",
            fix="Check the address; if the cluster asks for tokens, set RAY_AUTH_MODE=token (`ray start` says so).",
        ) from error
    logging.getLogger("ray.train").setLevel(logging.ERROR)


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise TrainingError(
            f"Nobody answers there ({error}).", where=f"--address {address}", fix="Check the address, and that the cluster is up."
        ) from None
