"""The service over HTTP: its own cost a request, requests a second of remembered texts, and onboarding.

    python benchmarks/serving.py                             # the bundle of `make demo`, which is made if it is not there
    python benchmarks/serving.py --bundle runs/mine/bundle

Clients run on the same machine and share its cores. The model's time comes with each answer (`Server-Timing`); the peer of the
service is the same model called in this process, one request after the other.
"""

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _report import report
from _service import Load, Service, ask, parser, run_clients

from penchant.data.choices import TextComparison
from penchant.scoring.model import PersonalisedRewardModel


def questions(model: PersonalisedRewardModel) -> dict[str, list[str]]:
    """Texts of the bundle's pool, by prompt: responses of its graph."""
    found: dict[str, list[str]] = {}
    for prompt, response in model.parts.questions.texts:
        found.setdefault(prompt, []).append(response)
    return found


def median(seconds: list[float]) -> float:
    return 1000 * float(np.median(seconds))


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--requests", type=int, default=2000)
    arguments = arguments_of.parse_args()
    torch.set_num_threads(1)
    model = PersonalisedRewardModel.load(arguments.bundle, remembered_texts=20_000)
    pool, random = questions(model), np.random.default_rng(0)
    prompts = [prompt for prompt, responses in pool.items() if len(responses) >= 4]
    users = [str(user) for user in model.parts.user_ids]

    def body() -> dict:
        prompt = prompts[random.integers(len(prompts))]
        return {"user": users[random.integers(len(users))], "prompt": prompt, "responses": pool[prompt][:4]}

    rows: list[dict] = []

    def row(proxy: str, what: str, clients: int, load: Load, peer: float | None = None) -> None:
        assert set(load.statuses) == {200}, load.statuses
        own = median(load.seconds) - median(load.model_seconds) if load.model_seconds else float("nan")
        rows.append(
            {
                "proxy": proxy, "request": what, "clients": clients, "p50, ms": median(load.seconds),
                "p95, ms": load.quantile(0.95),
                "model, p50, ms": median(load.model_seconds) if load.model_seconds else float("nan"), "service, p50, ms": own,
                "a second": len(load.seconds) / load.elapsed, "in process, p50, ms": float("nan") if peer is None else peer,
            }
        )  # fmt: skip

    def in_process(work, count: int) -> float:
        times = []
        for _ in range(count):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return median(times)

    def score(count: int):
        def work(connection, number, load):
            for _ in range(count):
                ask(connection, load, "POST", "/v1/score", body())

        return work

    def onboard(known: bool):
        def work(connection, number, load):
            for count in range(200):
                prompt = prompts[count % len(prompts)]
                chosen, rejected = pool[prompt][:2] if known else (f"Answer {count}: begin.", f"Well, {count} ways of it.")
                choice = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                ask(connection, load, "POST", f"/v1/users/new-{known}-{count}/comparisons", {"comparisons": [choice]})

        return work

    first, second = pool[prompts[0]][:2]
    fresh = iter(range(10**6))

    def embed(known: bool):
        texts = (first, second) if known else (f"One {next(fresh)}.", f"Two {next(fresh)}.")
        return model.embed_choices({"a": [TextComparison(prompts[0], *texts)]})

    for proxy, options in (("Ray's, in Python", ()), ("HAProxy", ("--haproxy",))):
        known, any_text = in_process(lambda: embed(True), 100), in_process(lambda: embed(False), 100)
        in_process(lambda: model.score(*body().values()), len(prompts))
        alone = in_process(lambda: model.score(*body().values()), 300)
        folder = Path(tempfile.mkdtemp())
        with Service(arguments.bundle, folder, *options, "scorer.max_replicas=1") as service:
            run_clients(service, 4, score(len(prompts) * 4))  # every text is remembered from here on
            row(proxy, "score, 4 remembered texts", 1, run_clients(service, 1, score(300)), alone)
            row(proxy, "score, 4 remembered texts", 16, run_clients(service, 16, score(arguments.requests // 16)))
            row(proxy, "onboard, responses of the graph", 1, run_clients(service, 1, onboard(True)), known)
            row(proxy, "onboard, any text", 1, run_clients(service, 1, onboard(False)), any_text)
        shutil.rmtree(folder)

    notes = [f"{len(users):,} users in the bundle; {len(model.parts.response_ids):,} responses in its graph."]
    for line in rows[::4]:
        notes.append(
            f"{line['proxy']}: the service's own cost at one client {line['service, p50, ms']:.1f} ms"
            f" (the whole request {line['p50, ms'] / line['in process, p50, ms']:.1f}x the same call in process)."
        )
    for line in rows[3::4]:
        beyond = line["p50, ms"] - line["in process, p50, ms"]
        notes.append(
            f"{line['proxy']}: onboarding with any text {line['service, p50, ms']:.1f} ms beyond the model's passes"
            f" ({beyond:.1f} beyond the same in process)."
        )
    notes.append(
        f"HAProxy against the other, 16 clients: {rows[5]['a second'] / rows[1]['a second']:.2f}x the requests a second."
    )
    report("serving", "The service over HTTP, clients on the same machine", rows, notes)


if __name__ == "__main__":
    main()
