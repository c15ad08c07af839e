"""One full training step of the graph stage on a large generated graph: time, memory, and what two workers hold each.

    python benchmarks/graph_scale.py                 # 1,000,000 users, 200,000 responses, 16,000,000 comparisons
    python benchmarks/graph_scale.py --users 100000  # smaller, the other sizes in proportion

The peer is the same step with PyG's own `propagate`, which holds a message for every edge; it runs at a sixteenth of the
size, beside the fused step at that size.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from _report import report
from _shards import make_shard

from penchant.graph.collectives import current
from penchant.graph.config import CandidateSettings, EncoderSettings, OptimizationSettings
from penchant.graph.layers import PreferenceLayer
from penchant.graph.preference_graph import PreferenceShard
from penchant.graph.training import GraphTrainer

SEEN_STEPS = 2


def edge_by_edge(self, user_UD, response_RD, graph):
    """`PreferenceLayer.forward` as PyG's `propagate` runs it: one message a edge."""
    sums = []
    for to_users in (True, False):
        for sign, weights in enumerate((graph.positive, graph.negative)):
            ends = torch.stack([weights.edges.response.long(), weights.edges.user])
            index, x = (ends, (response_RD, user_UD)) if to_users else (ends.flip(0), (user_UD, response_RD))
            sums.append(self.propagate(index, x=x, weight=weights.symmetric, sign=sign, size=(len(x[0]), len(x[1]))))
    return self.update_node(user_UD, sums[0], sums[1]), self.update_node(response_RD, sums[2], sums[3])


def measure(options: dict, rank: int, world_size: int) -> None:
    torch.set_num_threads(options["threads"])
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{options['out']}/meet", rank=rank, world_size=world_size)
    if options["plain"]:
        PreferenceLayer.forward = edge_by_edge
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shard = make_shard(options["users"], options["responses"], options["per_user"], rank, world_size)
    nothing = PreferenceShard.build(
        *(np.zeros(0, dtype=np.int64),) * 4,
        first_user=shard.first_user, num_users=shard.num_users, num_responses=shard.num_responses,
    )  # fmt: skip
    settings = CandidateSettings(
        encoder=EncoderSettings(dim=options["dim"], num_layers=options["layers"], response_init="id", user_init="id"),
        optimization=OptimizationSettings(supervision_share=0.5),
    )
    trainer = GraphTrainer(settings, shard, nothing, features=None, collective=current())
    trainer.best_state = {}  # one step is measured, not the best of many
    seconds = []
    for _ in range(SEEN_STEPS):
        started = time.perf_counter()
        loss = trainer.step()
        seconds.append(time.perf_counter() - started)
    rows = trainer.encoder.user_rows
    moments = [state for state in trainer.optimizer.state[rows].values() if state.dim()]
    edges = sum(t.nbytes for sign in (shard.positive, shard.negative) for t in vars(sign).values())
    result = {
        "seconds": min(seconds),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "imports_gib": before / 2**20,
        "users_gib": (rows.nbytes + rows.grad.nbytes + sum(moment.nbytes for moment in moments) + edges) / 2**30,
        "loss": loss,
    }
    Path(options["out"], f"{rank}.json").write_text(json.dumps(result))


def run(world_size: int, **options) -> list[dict]:
    with tempfile.TemporaryDirectory() as out:
        options |= {"out": out, "threads": max(1, torch.get_num_threads() // world_size)}
        command = [sys.executable, __file__, "--measure", json.dumps(options), str(world_size)]
        processes = [subprocess.Popen([*command, str(rank)]) for rank in range(world_size)]
        if any(process.wait() for process in processes):
            raise SystemExit("a worker failed")
        return [json.loads(Path(out, f"{rank}.json").read_text()) for rank in range(world_size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    full = {"users": options.users, "responses": options.users // 5, "per_user": 16, "dim": options.dim, "layers": options.layers}
    small = full | {"users": full["users"] // 16, "responses": full["responses"] // 16}
    rows = []
    for words, sizes, world_size, plain in (
        ("fused", full, 1, False),
        ("fused", full, 2, False),
        ("fused", small, 1, False),
        ("PyG propagate", small, 1, True),
    ):
        workers = run(world_size, **sizes, plain=plain)
        rows.append(
            {
                "step": words,
                "users": sizes["users"],
                "responses": sizes["responses"],
                "comparisons": sizes["users"] * sizes["per_user"],
                "workers": world_size,
                "seconds a step": max(worker["seconds"] for worker in workers),
                "peak GiB a worker": max(worker["peak_gib"] for worker in workers),
                "users' GiB a worker": max(worker["users_gib"] for worker in workers),
                "loss": workers[0]["loss"],
            }
        )
    peer = rows[3]["seconds a step"] / rows[2]["seconds a step"], rows[3]["peak GiB a worker"] / rows[2]["peak GiB a worker"]
    share = rows[1]["users' GiB a worker"] / rows[0]["users' GiB a worker"]
    report(
        "graph_scale",
        f"Graph stage: a full training step, dim {options.dim}, {options.layers} layers",
        rows,
        [
            f"Against PyG's propagate in the same run: {peer[0]:.1f}x faster, {peer[1]:.1f}x less memory.",
            f"Each of two workers holds {share:.2f} of what one holds for users.",
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(json.loads(sys.argv[2]), int(sys.argv[4]), int(sys.argv[3]))
    else:
        main()
