"""The graph stage under Ray Train: users sharded over the workers, every candidate trained, the best kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penchant.artifacts import read_json, replace_folder, write_json
from penchant.graph.collectives import current
from penchant.graph.config import CandidateSettings, GraphSettings
from penchant.graph.preference_graph import user_range
from penchant.graph.training import GraphTrainer, count_comparisons
from penchant.runtime.training.checkpoints import Checkpointer
from penchant.runtime.training.prepared import Prepared
from penchant.runtime.training.progress import open_log
from penchant.runtime.training.workers import prepare_worker
from penchant.storage import adding_to, join
from penchant.tensors import read_tensors, write_tensors


def graph_loop(config: dict[str, Any]) -> None:
    """What each worker runs: every candidate in turn, from the last checkpoint on."""
    device = prepare_worker(config)
    settings = GraphSettings.model_validate(config["graph"])
    prepared, log = Prepared.open(config["prepared"]), open_log(config["log"])
    collective, checkpointer = current(), Checkpointer(config["checkpoint_seconds"], log)
    train, valid = prepared.shards(collective.rank, collective.world_size)
    uses_text = any(candidate.encoder.uses_text for candidate in settings.candidates.values())
    features = prepared.features().float() if uses_text else None
    saved = checkpointer.load()
    first = int(saved[0]["candidate"]) if saved else 0
    comparisons = count_comparisons(train, collective, device)
    total = sum(candidate.optimization.steps(comparisons) for candidate in settings.candidates.values())
    behind = 0
    for number, (name, candidate) in enumerate(settings.candidates.items()):
        if number >= first:
            trainer = GraphTrainer(
                candidate, train, valid, features=features, collective=collective, seed=settings.seed, device=device
            )
            seconds = 0.0
            if saved and number == first:
                seconds = float(saved[0]["seconds"])
                trainer.load_state(_own_state(saved, collective.rank, collective.world_size, prepared.num_users))
            started = time.monotonic() - seconds
            for progress in trainer.run():
                if config["on_look"]:
                    config["on_look"](trainer, progress)
                if collective.rank == 0:
                    log.write(
                        done=behind + progress.step,
                        total=total,
                        note=f"{name}: valid {progress.valid_accuracy:.3f}",
                        candidate=name,
                        step=progress.step,
                        loss=progress.loss,
                        valid_accuracy=progress.valid_accuracy,
                    )
                if checkpointer.due():
                    clock = torch.tensor(time.monotonic() - started)
                    state = trainer.state() | {"candidate": torch.tensor(number), "seconds": clock}
                    checkpointer.save(state, step=progress.step, candidate=name)
            with adding_to(join(config["out"], name)) as folder:
                _write_candidate(folder, trainer, settings.folds, time.monotonic() - started)
        behind += candidate.optimization.steps(comparisons)
    if collective.rank == 0:
        log.write(done=total, total=total, note="")


def _own_state(saved: list[dict[str, Tensor]], rank: int, world_size: int, num_users: int) -> dict[str, Tensor]:
    """This worker's tensors from a checkpoint, also from one of another number of workers: users' rows are cut anew."""
    if len(saved) == world_size:
        return saved[rank]
    start, stop = user_range(rank, world_size, num_users)
    return {
        name: torch.cat([part[name] for part in saved])[start:stop] if _per_user(name, tensor) else tensor
        for name, tensor in saved[0].items()
    }


def _per_user(name: str, tensor: Tensor) -> bool:
    return "user_rows" in name and tensor.dim() == 2


def _write_candidate(folder: Path, trainer: GraphTrainer, folds: int, seconds: float) -> None:
    result, collective = trainer.embeddings(folds), trainer.collective
    part = _part(collective.rank, collective.world_size)
    write_tensors(folder / f"users-{part}.safetensors", {"embedding": result.user})
    write_tensors(folder / f"folds-{part}.safetensors", {"embedding": result.user_folds})
    if collective.rank == 0:
        weights = {name: value for name, value in trainer.best_state.items() if name != "user_rows"}
        write_tensors(folder / "encoder.safetensors", weights)
        write_tensors(folder / "responses.safetensors", {"layers": result.response_layers, "degree": result.response_degree})
        summary = {
            "valid_accuracy": trainer.best_accuracy,
            "workers": collective.world_size,
            "steps": trainer.step_number,
            "best_step": trainer.best_step,
            "seconds": round(seconds, 2),
        }
        write_json(folder / "summary.json", summary)


def _part(rank: int, workers: int) -> str:
    return f"{rank:05d}-of-{workers:05d}"


def keep_best(candidates_folder: Path, settings: GraphSettings, out: Path) -> dict[str, Any]:
    """Joins the workers' parts of the best candidate into `out`; returns its summary with those of all candidates.

    `graph.json` there is the summary, and holds the settings of the encoder that was kept.
    """
    summaries = {name: read_json(candidates_folder / name / "summary.json") for name in settings.candidates}
    best = max(summaries, key=lambda name: summaries[name]["valid_accuracy"])
    source, kept, workers = candidates_folder / best, settings.candidates[best], summaries[best]["workers"]
    with replace_folder(out) as draft:
        for name, dimension in (("users", 0), ("folds", 1)):
            files = [source / f"{name}-{_part(rank, workers)}.safetensors" for rank in range(workers)]
            parts = [read_tensors(path)["embedding"] for path in files]
            write_tensors(draft / f"{name}.safetensors", {"embedding": torch.cat(parts, dim=dimension)})
        for name in ("encoder.safetensors", "responses.safetensors"):
            write_tensors(draft / name, read_tensors(source / name))
        summary = {
            "chosen": best,
            "valid_accuracy": summaries[best]["valid_accuracy"],
            "seconds": round(sum(candidate["seconds"] for candidate in summaries.values()), 2),
            "candidates": [{"name": name, **candidate} for name, candidate in summaries.items()],
            "settings": CandidateSettings.model_dump(kept, mode="json"),
        }
        write_json(draft / "graph.json", summary)
    return summary
