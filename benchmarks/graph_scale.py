"""Full training steps of the graph stage on large generated graphs: time and memory, one size against peers, or a curve.

    python benchmarks/graph_scale.py                  # 1,000,000 users, 200,000 responses, 16,000,000 comparisons
    python benchmarks/graph_scale.py --users 100000   # smaller, the other sizes in proportion
    python benchmarks/graph_scale.py --users 10000 100000 1000000 10000000   # the curve, as far as memory goes

One size: the peers are the same step with PyG's own `propagate`, which holds a message for every edge, each with the layer's
map of its two ends, as the paper writes it; with `propagate` for the sums alone, and that map once a node, as ours; and with
products of PyTorch's CSR matrices. They run at a sixteenth of the size, beside the fused step at that size, and have to give
the same loss; on a CPU also two workers, for what each of them holds.

Three sizes and more: each at two numbers of comparisons a user, all in processes of their own, and a cost model fitted to them
(`_cost.py`): first without the largest size, which it then has to predict; then to all, to compute what a step takes at
100,000,000 users on hardware that `--workers`, `--gibibytes` and `--bandwidth` state. That row is computed, not measured. Memory
is the highest, beyond what the libraries take. A size that memory would not hold, going by the size before it, is left out.
"""

import argparse
import math

import psutil
import torch
from _cost import CostModel, Hardware, extrapolate, fit
from _device import add_device, device_name
from _graph_step import CSR, FUSED, PROPAGATE, SUMS, run
from _report import draw, report

from penchant.evaluation.figures import plain_figure

LARGE = 100_000_000
COMPARISONS = 16
"""Of a user; the curve has a fourth of it too, so that edges and nodes can be told apart."""


def sizes(users: int, per_user: int = COMPARISONS) -> dict[str, int]:
    return {"users": users, "responses": max(2, users // 5), "per_user": per_user}


def compare(users: int, settings: dict) -> None:
    """The fused step, on one worker and on two, and the peers'."""
    full, small = sizes(users), sizes(max(10, users // 16))
    cases = [(FUSED, full, 1), (FUSED, full, 2), *((way, small, 1) for way in (FUSED, PROPAGATE, SUMS, CSR))]
    rows = []
    for way, size, world_size in cases:
        if world_size > 1 and settings["device"] == "cuda":
            continue
        workers = run(world_size, **size, **settings, way=way)
        rows.append(
            {
                "step": way,
                "users": size["users"],
                "responses": size["responses"],
                "comparisons": size["users"] * size["per_user"],
                "workers": world_size,
                "seconds a step": max(worker["seconds"] for worker in workers),
                "peak GiB a worker": max(worker["peak_gib"] for worker in workers),
                "users' GiB a worker": max(worker["users_gib"] for worker in workers),
                "loss": workers[0]["loss"],
            }
        )
    fused, *peers = rows[-4:]
    notes = []
    for peer in peers:
        if not math.isclose(peer["loss"], fused["loss"], rel_tol=1e-5):
            raise SystemExit(f"{peer['step']} is no peer: its loss after a step is {peer['loss']}, ours {fused['loss']}.")
        faster, less = (peer[name] / fused[name] for name in ("seconds a step", "peak GiB a worker"))
        notes.append(f"Against {peer['step']} in the same run: {faster:.1f}x faster, {less:.1f}x less memory.")
    if rows[1]["workers"] == 2:
        share = rows[1]["users' GiB a worker"] / rows[0]["users' GiB a worker"]
        notes.append(f"Each of two workers holds {share:.2f} of what one holds for users.")
    report("graph_scale", f"Graph stage: a full training step, {words_for(settings)}", rows, notes)


def words_for(settings: dict) -> str:
    return f"dim {settings['dim']}, {settings['layers']} layers, {device_name(settings['device'])}"


def available_gib(device: str) -> float:
    """Memory for one more process. A graph for a GPU is built in the machine's memory first, and needs about as much there."""
    free = psutil.virtual_memory().available
    return (free if device == "cpu" else min(free, torch.cuda.mem_get_info()[0])) / 2**30


def measure_curve(all_users: list[int], settings: dict) -> tuple[list[dict], list[str]]:
    """A row for each size and density that memory holds."""
    rows: list[dict] = []
    a_user: dict[int, float] = {}  # GiB at the size before
    for users in sorted(all_users):
        for per_user in (COMPARISONS // 4, COMPARISONS):
            expected = users * a_user.get(per_user, 0.0)
            if expected > 0.8 * available_gib(settings["device"]):
                return rows, [f"{users:,} users and more are left out: about {expected:.0f} GiB would be needed."]
            size = sizes(users, per_user)
            (found,) = run(1, **size, **settings, spend=1.0)
            a_user[per_user] = found["graph_gib"] / users
            rows.append(
                {
                    "users": users,
                    "comparisons a user": per_user,
                    "edges": 2 * users * per_user,
                    "nodes": users + size["responses"],
                    "seconds a step": found["seconds"],
                    "GiB": found["graph_gib"],
                }
            )
    return rows, []


def fit_both(rows: list[dict]) -> tuple[CostModel, CostModel]:
    """Of seconds, and of bytes."""
    edges, nodes = ([row[name] for row in rows] for name in ("edges", "nodes"))
    return fit(edges, nodes, [row["seconds a step"] for row in rows]), fit(edges, nodes, [row["GiB"] * 2**30 for row in rows])


def curve(all_users: list[int], settings: dict, hardware: Hardware) -> None:
    """Measures the sizes, fits the cost model, and computes a step that no machine here could take."""
    rows, notes = measure_curve(all_users, settings)
    largest = rows[-1]["users"]
    fitted = [row for row in rows if row["users"] < largest]
    if len({row["users"] for row in fitted}) < 2:
        raise SystemExit(f"Memory holds {largest:,} users at most: give smaller sizes too, the model needs three.")
    seconds, size = fit_both(fitted)
    for row in rows:
        row["model's seconds"], row["model's GiB"] = seconds(row["edges"], row["nodes"]), size(row["edges"], row["nodes"]) / 2**30
        row["fitted to"] = "no" if row["users"] == largest else "yes"
    for row in rows[len(fitted) :]:
        errors = row["model's seconds"] / row["seconds a step"] - 1, row["model's GiB"] / row["GiB"] - 1
        notes.append(
            f"Held out, {largest:,} users with {row['comparisons a user']} comparisons:"
            f" the model is off by {errors[0]:+.0%} in time, {errors[1]:+.0%} in memory."
        )
    seconds, size = fit_both(rows)
    notes += [
        f"Fitted to all: {seconds.constant:.2g} s + {1e9 * seconds.edge:.3g} ns an edge + {1e9 * seconds.node:.3g} ns a node;"
        f" {size.constant / 2**20:.0f} MiB + {size.edge:.3g} bytes an edge + {size.node:.3g} bytes a node.",
        f"Its worst error on what it was fitted to: {worst(seconds, rows):.0%} in time.",
    ]
    title = f"Graph stage: a full training step, {words_for(settings)}"
    report("graph_scale_curve", title, rows, notes)
    draw("graph_scale_curve", picture(rows, seconds))
    computed = extrapolate(
        seconds, size, hardware, users=LARGE, responses=LARGE // 5, comparisons=LARGE * COMPARISONS, dim=settings["dim"],
        layers=settings["layers"],
    )  # fmt: skip
    report(
        "graph_scale_computed",
        f"COMPUTED, not measured: {hardware.workers} machines like this one of {hardware.gibibytes:g} GiB,"
        f" {hardware.bandwidth:g} GB/s each way",
        [computed],
        [
            "By the model above; memory is beyond what the libraries take. Responses are on every worker; the exchange is"
            " a ring's, and not hidden behind computation."
        ],
    )


def worst(model: CostModel, rows: list[dict]) -> float:
    return max(abs(model(row["edges"], row["nodes"]) / row["seconds a step"] - 1) for row in rows)


def picture(rows: list[dict], model: CostModel):
    """Seconds against edges, measured and by the model that was fitted to all."""
    figure = plain_figure("seconds a step")
    for per_user in sorted({row["comparisons a user"] for row in rows}):
        own = [row for row in rows if row["comparisons a user"] == per_user]
        edges = [row["edges"] for row in own]
        figure.add_scatter(x=edges, y=[row["seconds a step"] for row in own], mode="markers", name=f"measured, {per_user} a user")
        figure.add_scatter(
            x=edges, y=[model(row["edges"], row["nodes"]) for row in own], mode="lines", name=f"model, {per_user} a user"
        )
    figure.update_xaxes(type="log", title="edges")
    figure.update_yaxes(type="log")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[1_000_000], help="one size, or three and more")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--workers", type=int, default=16, help="of the machine that is computed")
    parser.add_argument("--gibibytes", type=float, default=256, help="memory of each of its workers")
    parser.add_argument("--bandwidth", type=float, default=12.5, help="GB a second each sends and receives (100 Gbit/s)")
    add_device(parser)
    options = parser.parse_args()
    if len(set(options.users)) == 2:
        parser.error("--users: give one size, or three and more")
    settings = {"dim": options.dim, "layers": options.layers, "device": options.device}
    if len(set(options.users)) == 1:
        compare(options.users[0], settings)
    else:
        curve(options.users, settings, Hardware(options.workers, options.gibibytes, options.bandwidth))


if __name__ == "__main__":
    main()
