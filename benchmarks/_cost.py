"""What a step of the graph stage costs as a function of the graph, fitted to measurements, and what that says of larger ones.

A step is sparse products over the edges, and dense ones over the nodes' rows; so seconds and bytes are
`constant + edge x edges + node x nodes`, where a comparison is two edges and a node is a user or a response.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True)
class CostModel:
    """`constant + edge x edges + node x nodes`, in the unit that it was fitted to."""

    constant: float
    edge: float
    node: float

    def __call__(self, edges: float, nodes: float) -> float:
        return self.constant + self.edge * edges + self.node * nodes


def fit(edges: Sequence[float], nodes: Sequence[float], measured: Sequence[float]) -> CostModel:
    """Least squares of the *relative* errors, since sizes span decades; no coefficient is below zero, as no cost is.

    Raises:
        ValueError: The sizes do not tell the three terms apart: fewer than three, or edges in proportion to nodes; or something
            cost nothing.
    """
    value = np.asarray(measured, dtype=float)
    if not (value > 0).all():
        raise ValueError("A cost of zero has no relative error.")
    relative = np.stack([np.ones(len(value)), np.asarray(edges, dtype=float), np.asarray(nodes, dtype=float)], axis=1)
    relative /= value[:, None]
    length = np.linalg.norm(relative, axis=0)
    if np.linalg.matrix_rank(relative / length, rtol=1e-6) < 3:
        raise ValueError("The sizes do not tell edges, nodes and the constant apart: vary the comparisons of a user too.")
    coefficient, _ = nnls(relative / length, np.ones(len(value)))
    return CostModel(*(coefficient / length).tolist())


def exchanged_bytes(*, responses: int, dim: int, layers: int, replicated: int, signs: int = 2, itemsize: int = 4) -> int:
    """What a worker gives to the sums over workers in a step.

    2 signs x layers x (forward + backward) x R x D of partial sums and their gradients, 2 R of degrees, the gradients of the
    `replicated` parameters, the count of scored comparisons, and the loss.
    """
    return itemsize * (signs * layers * 2 * responses * dim + signs * responses + replicated + 2)


@dataclass(frozen=True)
class Hardware:
    """Machines as those that were measured, and the network between them."""

    workers: int
    gibibytes: float
    """Memory of each."""
    bandwidth: float
    """GB a second that each sends, and receives at the same time."""


def extrapolate(
    seconds: CostModel,
    size: CostModel,
    hardware: Hardware,
    *,
    users: int,
    responses: int,
    comparisons: int,
    dim: int,
    layers: int,
) -> dict[str, float | int | str]:
    """A step on a graph over N workers, computed: users and edges are divided, responses are on every worker.

    The exchange is a ring's: each worker sends 2 (N - 1) / N of the bytes. It is added to the computation, not hidden behind it.
    """
    count = hardware.workers
    edges, nodes = 2 * comparisons / count, users / count + responses
    replicated = responses * dim + layers * 3 * dim * dim  # the responses' rows, and three maps a layer
    sent = exchanged_bytes(responses=responses, dim=dim, layers=layers, replicated=replicated) * 2 * (count - 1) / count
    gibibytes = size(edges, nodes) / 2**30
    return {
        "users": users,
        "responses": responses,
        "comparisons": comparisons,
        "workers": count,
        "computation, s": seconds(edges, nodes),
        "exchange, s": sent / (hardware.bandwidth * 1e9),
        "a step, s": seconds(edges, nodes) + sent / (hardware.bandwidth * 1e9),
        "GiB a worker": gibibytes,
        "it fits": "yes" if gibibytes <= hardware.gibibytes and edges / 2 < 2**31 else "no",
    }
