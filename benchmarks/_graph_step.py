"""Full training steps of the graph stage on a generated graph, measured in processes of their own.

What `graph_scale.py` and `graph_trainer.py` share. Options are a dictionary, so that they travel on a command line: users,
responses, per_user, dim, layers, way (`WAYS`), device, optimization (its settings), spend (seconds of steps of
one worker; by default two steps, however short).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from _device import forget_peak, peak_bytes, timed
from _shards import make_shard
from torch_geometric.nn import MessagePassing

from penchant.graph import layers
from penchant.graph.collectives import current
from penchant.graph.config import CandidateSettings, EncoderSettings, OptimizationSettings
from penchant.graph.layers import PreferenceLayer
from penchant.graph.preference_graph import PreferenceShard
from penchant.graph.training import GraphTrainer

STEPS = 2, 20
"""At least, and at most; between them as many as `spend` seconds hold."""


def edge_by_edge(self, user_UD, response_RD, graph):
    """`PreferenceLayer.forward` as PyG's `propagate` runs it: one message a edge."""
    sums = []
    for to_users in (True, False):
        for sign, weights in enumerate((graph.positive, graph.negative)):
            ends = torch.stack([weights.edges.response.long(), weights.edges.user])
            index, x = (ends, (response_RD, user_UD)) if to_users else (ends.flip(0), (user_UD, response_RD))
            sums.append(self.propagate(index, x=x, weight=weights.symmetric, sign=sign, size=(len(x[0]), len(x[1]))))
    return self.update_node(user_UD, sums[0], sums[1]), self.update_node(response_RD, sums[2], sums[3])


class Sum(MessagePassing):
    """PyG's sum of a node's weighted neighbours."""

    def __init__(self):
        super().__init__(aggr="add", node_dim=0)

    def forward(self, source, target, x_ND, weight_E, size):
        ends = torch.stack([source.long(), target.long()])
        return self.propagate(ends, x=(x_ND, None), weight=weight_E, size=(len(x_ND), size))

    def message(self, x_j, weight):
        return weight[:, None] * x_j


def pyg_to_users(edges, weight_E, response_RD):
    return Sum()(edges.response, edges.user, response_RD, weight_E, len(edges.user_offset))


def pyg_to_responses(edges, weight_E, user_UD):
    return Sum()(edges.user, edges.response, user_UD, weight_E, len(edges.response_offset))


def csr_to_users(edges, weight_E, response_RD):
    return _csr(edges.user_offset, edges.response, weight_E, len(response_RD)) @ response_RD


def csr_to_responses(edges, weight_E, user_UD):
    return _csr(edges.response_offset, edges.user_by_response, weight_E[edges.by_response], len(user_UD)) @ user_UD


def _csr(offset, column, value, width):
    """Of sorted edges, without sorting anew."""
    return torch.sparse_csr_tensor(torch.cat([offset, offset.new_tensor([len(value)])]), column, value, (len(offset), width))


FUSED, PROPAGATE, SUMS, CSR = "fused", "PyG's propagate", "PyG's propagate, sums alone", "PyTorch's CSR"
WAYS = {
    FUSED: (PreferenceLayer.forward, layers.aggregate_to_users, layers.aggregate_to_responses),
    # A message as the paper writes it, each with the layer's map of the two ends.
    PROPAGATE: (edge_by_edge, layers.aggregate_to_users, layers.aggregate_to_responses),
    # As ours, that map once a node, but for what sums over the edges.
    SUMS: (PreferenceLayer.forward, pyg_to_users, pyg_to_responses),
    CSR: (PreferenceLayer.forward, csr_to_users, csr_to_responses),
}
"""Of passing messages: ours, and peers on one worker. All give the same numbers."""


def pass_messages(way: str) -> None:
    """From now on, in this process."""
    PreferenceLayer.forward, layers.aggregate_to_users, layers.aggregate_to_responses = WAYS[way]


def make_trainer(options: dict, rank: int = 0, world_size: int = 1) -> GraphTrainer:
    """A worker's trainer over its part of the graph, with free rows for users and responses, as published."""
    pass_messages(options["way"])
    shard = make_shard(options["users"], options["responses"], options["per_user"], rank, world_size)
    nothing = PreferenceShard.build(
        *(np.zeros(0, dtype=np.int64),) * 4,
        first_user=shard.first_user, num_users=shard.num_users, num_responses=shard.num_responses,
    )  # fmt: skip
    settings = CandidateSettings(
        encoder=EncoderSettings(dim=options["dim"], num_layers=options["layers"], response_init="id", user_init="id"),
        optimization=OptimizationSettings(**options["optimization"]),
    )
    trainer = GraphTrainer(settings, shard, nothing, features=None, collective=current(), device=options["device"])
    trainer.best_state = {}  # a step is measured, not the best of many
    return trainer


def measure(options: dict, rank: int, world_size: int) -> None:
    """One worker: leaves RANK.json."""
    torch.set_num_threads(options["threads"])
    device = options["device"]
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{options['out']}/meet", rank=rank, world_size=world_size)
    forget_peak(device)
    before = peak_bytes(device)
    trainer = make_trainer(options, rank, world_size)
    losses: list[float] = []
    seconds: list[float] = []
    while len(seconds) < STEPS[0] or (len(seconds) < STEPS[1] and sum(seconds) < options["spend"]):
        seconds.append(timed(lambda: losses.append(trainer.step()), device))
    rows = trainer.encoder.user_rows
    moments = [state for state in trainer.optimizer.state[rows].values() if state.dim()]
    edges = sum(t.nbytes for sign in (trainer.train.positive, trainer.train.negative) for t in vars(sign).values())
    result = {
        "seconds": min(seconds),
        "peak_gib": peak_bytes(device) / 2**30,
        "graph_gib": (peak_bytes(device) - before) / 2**30,
        "users_gib": (rows.nbytes + rows.grad.nbytes + sum(moment.nbytes for moment in moments) + edges) / 2**30,
        "loss": losses[1],
    }
    Path(options["out"], f"{rank}.json").write_text(json.dumps(result))


def run(world_size: int, **options) -> list[dict]:
    """What each worker found, every one in a process of its own.

    Raises:
        SystemExit: A worker failed.
    """
    options = {"way": FUSED, "spend": 0.0, "optimization": {"supervision_share": 0.5}} | options
    with tempfile.TemporaryDirectory() as out:
        options |= {"out": out, "threads": max(1, torch.get_num_threads() // world_size)}
        command = [sys.executable, __file__, json.dumps(options), str(world_size)]
        processes = [subprocess.Popen([*command, str(rank)]) for rank in range(world_size)]
        if sum(abs(process.wait()) for process in processes):  # all of them are waited for
            raise SystemExit(f"A worker failed at {options['users']:,} users; is there memory for it?")
        return [json.loads(Path(out, f"{rank}.json").read_text()) for rank in range(world_size)]


if __name__ == "__main__":
    measure(json.loads(sys.argv[1]), int(sys.argv[3]), int(sys.argv[2]))
