"""The graph stage's step against the authors' own model and against PyG's `propagate`: one graph, one setting, in turn.

    git clone https://github.com/ml-postech/CoPL
    python benchmarks/graph_trainer.py --authors CoPL
    python benchmarks/graph_trainer.py      # without the authors

The authors' side is their `models/CoPL_gcf.py`, imported from the checkout in a process of its own, stepped as their
`train_CoPL_gcf.py` steps it: a whole propagation and an update for every mini-batch of 1,024 comparisons, AdamW, edge dropout .1,
L2 of 1e-6. Left out, in their favour: metrics, logging, their data loader, their schedule of the rate, and their normalisation of
the edges, a loop in Python over all of them. Ours, with the same width, depth, dropout, rate and free rows, scores all
comparisons after one propagation. Before anything is timed their model gets our weights (its biases zero), and has to give the
same embeddings without dropout.

So there are two ratios: of a step, which is one propagation on either side, and of a pass over all comparisons, which is one step
here and one for each mini-batch there. A pass then makes fewer updates; what that does to the result is not asked here. Where
there is no GPU, `.cuda()`, which their model calls, is made to do nothing in their process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import psutil
import torch
from _device import add_device, device_name, forget_peak, peak_bytes, settle, timed
from _graph_step import FUSED, PROPAGATE, make_trainer
from _report import report
from _shards import make_shard
from _turns import Turns, join
from safetensors.torch import load_file, save_file
from torch.nn import functional

from penchant.graph.preference_graph import messages

BATCH, RATE, DROPOUT, DECAY = 1024, 1e-4, 0.1, 1e-6
AUTHORS = "the authors'"


class Ours:
    """Our trainer, with the authors' settings."""

    def __init__(self, options: dict, *, way: str) -> None:
        settings = {"supervision_share": 0.0, "edge_dropout": DROPOUT, "learning_rate": RATE, "weight_decay": 0.01}
        self.trainer = make_trainer(options | {"way": way, "optimization": settings})

    @torch.no_grad()
    def write(self, path: Path) -> None:
        """The weights that training starts from, and the embeddings that they give."""
        trainer = self.trainer
        user_UD, response_RD = trainer.encoder(messages(trainer.train, trainer.collective), None)
        tensors = {"user": functional.normalize(user_UD, dim=1), "response": response_RD}
        save_file({name: value.cpu().contiguous() for name, value in (trainer.encoder.state_dict() | tensors).items()}, path)

    def step(self) -> None:
        self.trainer.step()


class Authors:
    """Their model, from their checkout, and their step."""

    def __init__(self, options: dict) -> None:
        device = options["device"]
        sys.path.insert(0, options["authors"])
        warnings.simplefilter("ignore")  # their sparse tensors are made by an old name
        if device == "cpu":
            torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]
        from models.CoPL_gcf import CoPLGCF

        shard = make_shard(options["users"], options["responses"], options["per_user"], 0, 1)
        self.user = shard.positive.user.to(device)
        self.chosen, self.rejected = (edges.response.long().to(device) for edges in (shard.positive, shard.negative))
        size = options["users"], options["responses"]
        adjacent = [self.adjacency(self.user, end, size) for end in (self.chosen, self.rejected)]
        self.model = CoPLGCF(*size, options["dim"], *adjacent, DROPOUT, l=options["layers"]).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        self.order, self.at = torch.randperm(len(self.user), device=device), 0

    @staticmethod
    def adjacency(user: torch.Tensor, end: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Their normalised adjacency, without the loop: how often a user has an edge there, over the root of both degrees."""
        found = torch.sparse_coo_tensor(torch.stack([user, end]), torch.ones(len(user), device=user.device), size).coalesce()
        row, column = found.indices()
        root = (found.sum(1).to_dense()[row] * found.sum(0).to_dense()[column]).sqrt()
        return torch.sparse_coo_tensor(found.indices(), found.values() / root, size).coalesce()

    @torch.no_grad()
    def check(self, path: Path) -> float:
        """Takes our weights; the largest difference of an embedding from ours, over the largest embedding.

        Raises:
            SystemExit: It is more than float32's rounding explains.
        """
        ours, model = load_file(path), self.model
        model.E_u_0.copy_(ours["user_rows"])
        model.E_i_0.copy_(ours["response_rows"])
        for number in range(model.l):
            for mine, theirs in (("own", model.W_u_self), ("interaction.0", model.W_i_pos), ("interaction.1", model.W_i_neg)):
                theirs[number].weight.copy_(ours[f"layers.{number}.{mine}.weight"])
                theirs[number].bias.zero_()
        model(self.user[:1], self.chosen[:1], self.rejected[:1], test=True)
        pairs = ((model.E_u, ours["user"]), (model.E_i, ours["response"]))
        difference = max(float((theirs.cpu() - mine).abs().max() / mine.abs().max()) for theirs, mine in pairs)
        if difference > 1e-3:
            raise SystemExit(f"The authors' model and ours are not the same function: embeddings differ by {difference:.2g}.")
        return difference

    def step(self) -> None:
        """As in their training loop, at the next mini-batch."""
        part = self.order[self.at : self.at + BATCH]
        self.at = (self.at + BATCH) % len(self.order)
        self.optimizer.zero_grad()
        (loss, squares), _ = self.model(self.user[part], self.chosen[part], self.rejected[part])
        (loss + DECAY * squares).backward()
        self.optimizer.step()


def measure(options: dict, side: str) -> None:
    """One side's process: its block of steps whenever it is its turn."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    out, device = Path(options["out"]), options["device"]
    turns = Turns(out, options["sides"], side)
    turns.wait()
    forget_peak(device)
    before, difference = peak_bytes(device), 0.0
    if side == AUTHORS:
        trainer: Ours | Authors = Authors(options)
        difference = trainer.check(out / "ours.safetensors")
    else:
        trainer = Ours(options, way=side)
        if side == FUSED:
            trainer.write(out / "ours.safetensors")
    trainer.step()  # warms up
    settle(device)
    turns.give()
    seconds = []
    for _ in range(options["rounds"]):
        turns.wait()
        seconds += [timed(trainer.step, device) for _ in range(options["steps"])]
        turns.give()
    result = {"seconds": seconds, "gib": (peak_bytes(device) - before) / 2**30, "difference": difference}
    (out / f"{options['sides'].index(side)}.json").write_text(json.dumps(result))


def propagate_gib(options: dict) -> float:
    """About what PyG's way holds: 2 signs x 2 directions x layers x 5 tensors of comparisons x dim, for the backward pass."""
    return 4 * options["layers"] * 5 * options["users"] * options["per_user"] * options["dim"] * 4 / 2**30


def run(options: dict) -> dict[str, dict]:
    """What each side found."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--measure", json.dumps(options | {"out": out})]
        join({side: subprocess.Popen([*command, side]) for side in options["sides"]})
        return {side: json.loads(Path(out, f"{number}.json").read_text()) for number, side in enumerate(options["sides"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path, help="a checkout of github.com/ml-postech/CoPL")
    parser.add_argument("--users", type=int, default=10_000, help="the defaults are alpaca-p4's size and the authors' settings")
    parser.add_argument("--responses", type=int, default=11_422)
    parser.add_argument("--per-user", type=int, default=16)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    add_device(parser)
    arguments = parser.parse_args()
    notes, sides = [], [FUSED]
    options = vars(arguments) | {"threads": torch.get_num_threads(), "authors": str(arguments.authors)}
    needed, free = propagate_gib(options), psutil.virtual_memory().available / 2**30
    if arguments.device == "cuda":
        free = torch.cuda.mem_get_info()[0] / 2**30
    if needed < 0.6 * free:
        sides.append(PROPAGATE)
    else:
        notes.append(f"PyG's propagate is left out: about {needed:.0f} GiB, {free:.0f} are free; graph_scale.py has it, smaller.")
    if arguments.authors is None:
        notes.append("The authors' trainer is missing: give --authors, a checkout of github.com/ml-postech/CoPL.")
    elif not (arguments.authors / "models" / "CoPL_gcf.py").exists():
        parser.error(f"--authors: there is no models/CoPL_gcf.py in {arguments.authors}")
    else:
        sides.append(AUTHORS)
    found = run(options | {"sides": sides})
    comparisons = arguments.users * arguments.per_user
    rows = []
    for side in sides:
        step, updates = statistics.median(found[side]["seconds"]), -(-comparisons // BATCH) if side == AUTHORS else 1
        rows.append(
            {
                "trainer": side,
                "seconds a step": step,
                "fastest": min(found[side]["seconds"]),
                "steps a pass": updates,
                "seconds a pass": step * updates,
                "GiB, at most": found[side]["gib"],
            }
        )
    for row in rows[1:]:
        ratio = statistics.median(a / b for a, b in zip(found[row["trainer"]]["seconds"], found[FUSED]["seconds"], strict=True))
        notes.append(
            f"Against {row['trainer']}: {ratio:.1f}x the speed of a step, {ratio * row['steps a pass']:,.0f}x of a pass over all"
            f" {comparisons:,} comparisons, {row['GiB, at most'] / rows[0]['GiB, at most']:.1f}x less memory."
        )
    if AUTHORS in found:
        notes.append(f"From the same weights the embeddings differ by {found[AUTHORS]['difference']:.1g} of the largest at most.")
    report(
        "graph_trainer",
        f"Graph stage, {arguments.users:,} users, {arguments.responses:,} responses, dim {arguments.dim},"
        f" {arguments.layers} layers, {device_name(arguments.device)}",
        rows,
        notes,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(json.loads(sys.argv[2]), sys.argv[3])
    else:
        main()
