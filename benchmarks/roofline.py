"""How near each hot path comes to what the machine can do: operations and bytes by formula, peaks measured in the run.

    python benchmarks/roofline.py            # float32 on this machine's CPU, bfloat16 on its GPU
    python benchmarks/roofline.py --small    # only to see that it runs

The peer is the machine itself: the best of some large matrix products, and of some large copies. No call can be faster than its
operations at the one rate, or its bytes at the other (`_work.py`); a path's share is that bound over its median time. A gather
whose rows are no longer in a cache moves more than the formula's bytes, which count every array once: its share is then low for a
reason. Onboarding is NumPy on the CPU and is left out on a GPU.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from _device import add_device, device_name, seconds_in_turn, training_precision
from _peaks import Peaks, measure_peaks
from _report import draw, report
from _shapes import decoder, minilm, parameters_of_layers, random_tokens
from _shards import make_shard
from _work import Work, aggregation, head, low_rank_backward, low_rank_layer, neighbours, transformer
from torch import Tensor, nn
from transformers import DynamicCache

from penchant.backbone.grouped.layers import grouped_layer
from penchant.backbone.grouped.rows import Rows, rows_scope
from penchant.evaluation.figures import plain_figure
from penchant.graph.neighbours import NeighbourIndex
from penchant.graph.sparse import aggregate_to_users
from penchant.reward.config import HeadSettings
from penchant.reward.heads import make_head
from penchant.reward.mole import MoleConfig
from penchant.reward.mole.layer import MoleLayer
from penchant.reward.mole.routing import Route, Routing, routing_scope

DIM, RANK, EXPERTS, ADAPTERS, COMPARISONS = 64, 8, 8, 2_000, 8

Path = tuple[Callable[[], object], Work]
"""A call, and what it has to do."""


def graph_path(users: int, device: str) -> Path:
    """One sparse product: half of a layer's messages of one sign. The rows are float32 whatever the device."""
    responses, per_user = users // 5, 16
    edges = make_shard(users, responses, per_user, 0, 1).positive.to(device)
    weight_E = torch.rand(users * per_user, device=device)
    response_RD = torch.randn(responses, DIM, device=device)
    return lambda: aggregate_to_users(edges, weight_E, response_RD), aggregation(users * per_user, users, responses, DIM)


def head_path(texts: int, device: str) -> Path:
    """The frozen phase's head on features that are known, float32 as it is served."""
    features = 784
    model = make_head(HeadSettings(), feature_dim=features, user_dim=DIM).to(device).eval()
    feature_NF, user_ND = torch.randn(texts, features, device=device), torch.randn(texts, DIM, device=device)
    return lambda: model(feature_NF, user_ND), head(texts, features, HeadSettings().hidden, DIM)


def mole_call(
    rows: int, tokens: int, width: int, device: str, dtype: torch.dtype
) -> tuple[Callable[[], Tensor], Tensor, list[nn.Parameter]]:
    """A call of one linear map with experts, every row another user's; what it reads, and what is trained."""
    config = MoleConfig(r=RANK, num_experts=EXPERTS, user_dim=DIM)
    layer = MoleLayer(nn.Linear(width, width).requires_grad_(False), "default", config).to(device, dtype)
    expert_B1 = torch.arange(rows, device=device)[:, None] % EXPERTS
    weight_B1 = torch.ones(rows, 1, device=device, dtype=dtype)
    route = Route(expert_B1, weight_B1, torch.full((rows, EXPERTS), 1 / EXPERTS, device=device))
    routing = Routing({(layer, "default"): route}, torch.arange(rows, device=device))
    x_BTI = torch.randn(rows, tokens, width, device=device, dtype=dtype)

    def call() -> Tensor:
        with routing_scope(routing):
            return layer(x_BTI)

    return call, x_BTI, [parameter for parameter in layer.parameters() if parameter.requires_grad]


def mole_path(rows: int, tokens: int, width: int, device: str, dtype: torch.dtype) -> Path:
    """The map as it answers."""
    call, _, _ = mole_call(rows, tokens, width, device, dtype)
    slices = min(rows, EXPERTS)
    return call, low_rank_layer(rows, tokens, width, width, RANK, slices, shared=RANK, itemsize=dtype.itemsize)


def mole_training_path(rows: int, tokens: int, width: int, device: str, dtype: torch.dtype) -> Path:
    """The map as it is trained, there and back."""
    call, x_BTI, trained = mole_call(rows, tokens, width, device, dtype)
    gradient_BTO = torch.randn_like(x_BTI)
    x_BTI.requires_grad_()
    leaves = [x_BTI, *trained]

    def there_and_back() -> None:
        with torch.enable_grad():
            call().backward(gradient_BTO)
        for leaf in leaves:
            leaf.grad = None  # else the next call would add to it

    sizes = (rows, tokens, width, width, RANK, min(rows, EXPERTS), RANK, dtype.itemsize)
    there, back = low_rank_layer(*sizes), low_rank_backward(*sizes)
    return there_and_back, Work(there.operations + back.operations, there.bytes + back.bytes)


def reading_path(texts: int, tokens: int, device: str, dtype: torch.dtype) -> Path:
    """A base of MiniLM's shape over texts without padding."""
    model, inputs = minilm(device, dtype).eval(), random_tokens(texts, tokens, device)
    model.pooler = None
    shape = model.config
    work = transformer(
        texts, tokens, parameters_of_layers(model), shape.hidden_size, shape.num_hidden_layers, itemsize=dtype.itemsize
    )
    return lambda: model(**inputs), work


def decoding_path(shape: str, rows: int, cached: int, device: str, dtype: torch.dtype) -> Path:
    """One more token for each of some answers, behind as many as are cached; without adapters, which the grouped layer has."""
    model = decoder(shape, device, dtype).eval()
    config = model.config
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    kept = [torch.randn(rows, heads, cached, width, device=device, dtype=dtype) for _ in range(2)]
    ids = torch.ones(rows, 1, dtype=torch.long, device=device)
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        cache.update(*kept, layer)

    def call() -> None:
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.crop(-1)

    sizes = (rows, 1, parameters_of_layers(model), config.hidden_size, config.num_hidden_layers, cached, 2 * heads * width)
    return call, transformer(*sizes, itemsize=dtype.itemsize)


def grouped_path(rows: int, tokens: int, width: int, device: str, dtype: torch.dtype) -> Path:
    """One linear map with an adapter for each row, out of many in memory."""
    base = nn.Linear(width, width).to(device, dtype)
    shapes = {"lora_A.weight": torch.Size((RANK, width)), "lora_B.weight": torch.Size((width, RANK))}
    layer = grouped_layer(base, shapes, slots=ADAPTERS, dtype=dtype, scale=2.0, number=0)
    slot_B = torch.randperm(ADAPTERS, device=device)[:rows]
    x_BTI = torch.randn(rows, tokens, width, device=device, dtype=dtype)

    def call() -> None:
        with rows_scope(Rows(slot_B)):
            layer(x_BTI)

    return call, low_rank_layer(rows, tokens, width, width, RANK, slices=rows, itemsize=dtype.itemsize)


def onboarding_path(users: int) -> Path:
    """A new user's embedding from those of the neighbours, whose number is that of this draw."""
    random = np.random.default_rng(0)
    responses = users // 5
    user_UD = random.normal(size=(users, DIM)).astype(np.float32)
    response_RD = random.normal(size=(responses, DIM)).astype(np.float32)
    chosen = (responses * random.random(users * 16) ** 2).astype(np.int64)
    index = NeighbourIndex.build(np.repeat(np.arange(users), 16), chosen, user_UD, response_RD)
    pair = (responses * random.random((2, COMPARISONS)) ** 2).astype(np.int64)
    return lambda: index.embed(*pair), neighbours(len(index.neighbours(pair[0])), COMPARISONS, DIM)


def row(name: str, seconds: list[float], work: Work, peaks: Peaks) -> dict:
    taken, bound = float(np.median(seconds)), peaks.bound(work.operations, work.bytes)
    by_compute = work.operations / peaks.operations >= work.bytes / peaks.bandwidth
    return {
        "path": name,
        "GFLOP": work.operations / 1e9,
        "MB": work.bytes / 1e6,
        "FLOP a byte": work.intensity,
        "bound by": "operations" if by_compute else "bytes",
        "bound, ms": 1e3 * bound,
        "measured, ms": 1e3 * taken,
        "GFLOP/s": work.operations / taken / 1e9,
        "GB/s": work.bytes / taken / 1e9,
        "share of the bound": bound / taken,
    }


def picture(rows: list[dict], peaks: dict[str, Peaks]):
    """GFLOP/s against operations a byte, with the roof of each precision."""
    figure = plain_figure("GFLOP/s")
    for name, limit in peaks.items():
        edge = limit.operations / limit.bandwidth
        at = np.geomspace(0.05, max(1000, 4 * edge), 60)
        figure.add_scatter(x=at, y=np.minimum(limit.operations, at * limit.bandwidth) / 1e9, mode="lines", name=f"roof, {name}")
    for each in rows:
        figure.add_scatter(x=[each["FLOP a byte"]], y=[each["GFLOP/s"]], mode="markers", name=each["path"], marker_size=10)
    figure.update_xaxes(type="log", title="operations a byte")
    figure.update_yaxes(type="log")
    return figure.update_layout(height=520, legend={"orientation": "v", "x": 1.02, "y": 1})


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    add_device(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = options.device
    dtype = training_precision(device)
    users, texts, rows, tokens, width, shape = 200_000, 20_000, 64, 64, 384, "half"
    if options.small:
        users, texts, rows, tokens, width, shape = 2_000, 500, 4, 16, 64, "tiny"
    elif device == "cuda":
        users, texts, tokens, width, shape = 1_000_000, 1_000_000, 256, 4096, "8b"
    paths = {
        f"graph aggregation, {users:,} users x 16": graph_path(users, device),
        f"head on {texts:,} known features": head_path(texts, device),
        f"MoLE layer, {rows} users x {tokens} tokens, {width} wide": mole_path(rows, tokens, width, device, dtype),
        f"MoLE layer, {rows} x {tokens}, there and back": mole_training_path(rows, tokens, width, device, dtype),
        f"grouped layer, {rows} of {ADAPTERS:,} adapters, {rows} x {tokens} tokens": grouped_path(
            rows, tokens, width, device, dtype
        ),
        f"base of MiniLM's shape, {rows} texts x {tokens} tokens": reading_path(rows, tokens, device, dtype),
        f"decoding step, {shape} base, {rows // 4} answers of {tokens} tokens": decoding_path(
            shape, rows // 4, tokens, device, dtype
        ),
    }
    if device == "cpu":
        paths[f"onboarding among {users:,} users"] = onboarding_path(users)
    in_float32 = [name for name in paths if name.startswith(("graph", "head", "onboarding"))]
    single = measure_peaks(device, torch.float32)
    half = measure_peaks(device, dtype) if dtype != torch.float32 else single
    seconds = seconds_in_turn({name: call for name, (call, _) in paths.items()}, device, options.rounds)
    found = []
    for name, (_, work) in paths.items():
        found.append(row(name, seconds[name], work, single if name in in_float32 else half))
    peaks = {"float32": single} | ({} if half is single else {str(dtype).removeprefix("torch."): half})
    notes = [
        f"{name}: {limit.operations / 1e9:,.0f} GFLOP/s of a matrix product, {limit.bandwidth / 1e9:,.1f} GB/s of a copy."
        for name, limit in peaks.items()
    ]
    report("roofline", f"Hot paths against the machine's own limits, {device_name(device)}", found, notes)
    draw("roofline", picture(found, peaks))


if __name__ == "__main__":
    main()
