"""Weak scaling of the graph stage: one worker, and two with twice the users, one thread each; and what they exchange.

    python benchmarks/graph_weak_scaling.py                # 100,000 users a worker, 10,000 responses
    python benchmarks/graph_weak_scaling.py --users 50000 --responses 5000

The two take turns, a block of steps each, so that what else the machine does meets both alike. Every exchange is counted where it
is made, and held against the formula (`_cost.exchanged_bytes`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from _cost import exchanged_bytes
from _report import report
from _shards import make_shard
from _turns import Turns, join

from penchant.graph.collectives import Collective, current
from penchant.graph.config import CandidateSettings, EncoderSettings, OptimizationSettings
from penchant.graph.preference_graph import PreferenceShard
from penchant.graph.training import GraphTrainer

ROUNDS, STEPS = 8, 3
SIDES = ["one", "apart", "two"]
"""A worker; two at once that exchange nothing, for what the machine makes of that; two on one graph."""


def count_bytes() -> list[int]:
    """Counts what `all_reduce` is given, from now on."""
    counted, plain = [0], dist.all_reduce

    def counting(tensor, *arguments, **named):  # type: ignore[no-untyped-def]
        counted[0] += tensor.nbytes
        return plain(tensor, *arguments, **named)

    dist.all_reduce = counting
    return counted


def measure(options: dict, side: str, rank: int) -> None:
    torch.set_num_threads(1)
    together, world_size = side != "one", 2 if side == "two" else 1
    if together:
        dist.init_process_group("gloo", init_method=f"file://{options['out']}/meet-{side}", rank=rank, world_size=2)
    counted = count_bytes()
    users = options["users"] * world_size
    shard = make_shard(users, options["responses"], options["per_user"], rank if side == "two" else 0, world_size)
    nothing = PreferenceShard.build(
        *(np.zeros(0, dtype=np.int64),) * 4,
        first_user=shard.first_user, num_users=shard.num_users, num_responses=shard.num_responses,
    )  # fmt: skip
    encoder = EncoderSettings(dim=options["dim"], num_layers=options["layers"], response_init="id", user_init="id")
    settings = CandidateSettings(encoder=encoder, optimization=OptimizationSettings(supervision_share=0.5))
    trainer = GraphTrainer(settings, shard, nothing, features=None, collective=current() if side == "two" else Collective())
    trainer.step()
    counted[0] = 0
    seconds = []
    turns = Turns(Path(options["out"]), SIDES, side, leads=rank == 0)
    for _ in range(ROUNDS):
        turns.wait()
        if together:
            dist.barrier()
        started = time.perf_counter()
        for _ in range(STEPS):
            trainer.step()
        seconds.append((time.perf_counter() - started) / STEPS)
        if together:
            dist.barrier()
        turns.give()
    shared = sum(parameter.numel() for parameter in trainer.encoder.replicated_parameters())
    responses, dim, layers = options["responses"], options["dim"], options["layers"]
    result = {
        "users": users,
        "seconds": seconds,
        "bytes": counted[0] / (ROUNDS * STEPS),
        "formula": exchanged_bytes(responses=responses, dim=dim, layers=layers, replicated=shared) if side == "two" else 0,
    }
    Path(options["out"], f"{side}-{rank}.json").write_text(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000, help="of each worker")
    parser.add_argument("--responses", type=int, default=10_000)
    parser.add_argument("--per-user", type=int, default=16)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    options = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--measure", json.dumps(options | {"out": out})]
        workers = [("one", 0), ("apart", 0), ("apart", 1), ("two", 0), ("two", 1)]
        join({f"{side}, {rank}": subprocess.Popen([*command, side, str(rank)]) for side, rank in workers})
        results = {
            side: [json.loads(Path(out, f"{side}-{rank}.json").read_text()) for own, rank in workers if own == side]
            for side in SIDES
        }
    rows = [
        {
            "workers": {"one": "1", "apart": "2, each a graph of its own", "two": "2, one graph"}[side],
            "users": result["users"],
            "comparisons": result["users"] * options["per_user"],
            "seconds a step": statistics.median(result["seconds"]),
            "fastest": min(result["seconds"]),
            "exchanged, MB a step": result["bytes"] / 1e6,
            "formula, MB": result["formula"] / 1e6,
        }
        for side, (result, *_) in results.items()
    ]
    assert all(result["bytes"] == result["formula"] for side in SIDES for result in results[side]), results

    def ratio(side: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(*(results[name][0]["seconds"] for name in (side, to)), strict=True))

    report(
        "graph_weak_scaling",
        f"Graph stage, one thread a worker: dim {options['dim']}, {options['layers']} layers, {options['responses']:,} responses",
        rows,
        [
            f"Two workers with twice the users: {ratio('two', 'one'):.2f}x the time of a step (median of {ROUNDS} turns).",
            f"Two at once on this machine, by themselves: {ratio('apart', 'one'):.2f}x;"
            f" one graph against that: {ratio('two', 'apart'):.2f}x.",
            "The bytes are what each worker gives to the sums; a ring of N sends 2 (N - 1) / N of them.",
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
