"""What Ray and Ray Serve read from the environment when they start, here and in the actors; so it is set before that."""

from __future__ import annotations

import os

_SERVE = {
    # One event loop to a replica and gRPC between replicas: our endpoints never block theirs.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # All comparisons of a user go to a replica in one message: how long it may be is for the settings' limits to say (gRPC itself
    # ends at this), not for Ray's default of 4 MiB.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Ray gives its workers the lowest priority but four: beside anything else that computes they get next to nothing.
    "RAY_worker_niceness": "0",
}
_HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # How long a replica waits for the proxy to notice that it goes, be there requests or not.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
}


def prepare_environment(*, haproxy: bool = False) -> None:
    """Sets what is not set.

    Args:
        haproxy: Ray's HAProxy before the API, and not its proxy in Python.
    """
    for name, value in (_SERVE | (_HAPROXY if haproxy else {})).items():
        os.environ.setdefault(name, value)
