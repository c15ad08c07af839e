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


def by_csr(self, user_UD, response_RD, graph):
    """The same by products with PyTorch's CSR matrices, which are made of the sorted edges without sorting anew."""
    to_users, to_responses = [], []
    for weights in (graph.positive, graph.negative):
        edges, weight = weights.edges, weights.symmetric
        users, responses = (
            torch.sparse_csr_tensor(torch.cat([offset, offset.new_tensor([len(weight)])]), column, value, shape)
            for offset, column, value, shape in (
                (edges.user_offset, edges.response, weight, (len(user_UD), len(response_RD))),
                (edges.response_offset, edges.user_by_response, weight[edges.by_response], (len(response_RD), len(user_UD))),
            )
        )
        to_users.append(users @ response_RD)
        to_responses.append(responses @ user_UD)
    return self.update_node(user_UD, *to_users), self.update_node(response_RD, *to_responses)


FUSED, PROPAGATE, CSR = "fused", "PyG's propagate", "PyTorch's CSR"
WAYS = {FUSED: PreferenceLayer.forward, PROPAGATE: edge_by_edge, CSR: by_csr}
"""Of passing messages: ours, and peers on one worker."""


def make_trainer(options: dict, rank: int = 0, world_size: int = 1) -> GraphTrainer:
    """A worker's trainer over its part of the graph, with free rows for users and responses, as published."""
    PreferenceLayer.forward = WAYS[options["way"]]
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
