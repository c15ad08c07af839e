"""The frozen reward phase under Ray Train: uniform, personalised and (where groups are known) oracle heads, data-parallel."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch

from penchant.artifacts import write_json
from penchant.graph.sampling import fold_of
from penchant.reward.config import RewardSettings
from penchant.reward.training import RewardData, RewardTrainer, UserTable
from penchant.runtime.training.checkpoints import Checkpointer
from penchant.runtime.training.prepared import Prepared
from penchant.runtime.training.progress import ProgressLog, open_log
from penchant.runtime.training.workers import prepare_worker
from penchant.storage import Location, local_copy, replacing
from penchant.tensors import read_tensors, write_tensors

MODELS = ("uniform", "personalised", "oracle")
"""What a fit trains side by side, the last where groups are known."""
ENDS = ("uniform", "oracle")
"""Those that know nothing of graph or method: fits of the same data and reward settings have them in common."""


def reward_loop(config: dict[str, Any]) -> None:
    """What each worker runs: its slice of every batch, from the last checkpoint on."""
    device = prepare_worker(config)
    settings = RewardSettings.model_validate(config["reward"])
    prepared, log = Prepared.open(config["prepared"]), open_log(config["log"])
    checkpointer = Checkpointer(config["checkpoint_seconds"], log)
    columns = prepared.comparisons()
    users = user_tables(prepared, columns, config["graph"], seed=config["graph_seed"], models=config["models"])
    data = RewardData(
        feature_RF=prepared.features().float(),
        chosen=columns["chosen"],
        rejected=columns["rejected"],
        valid=columns["valid"],
        users=users,
    )
    trainer = RewardTrainer(
        settings,
        data,
        rank=checkpointer.rank,
        world_size=checkpointer.world_size,
        wrap=ray.train.torch.prepare_model,
        device=device,
    )
    seconds = train_heads(trainer, config, checkpointer, log)
    if checkpointer.rank == 0:
        with replacing(config["out"]) as draft:
            for name, state in trainer.best_state.items():
                write_tensors(draft / f"{name}.safetensors", state)
            write_json(draft / "reward.json", summary_of(trainer, seconds))


def train_heads(trainer: RewardTrainer, config: dict[str, Any], checkpointer: Checkpointer, log: ProgressLog) -> float:
    """Trains from the last checkpoint on, with a look in the log for each of the trainer's; returns the seconds that it took."""
    started = time.monotonic() - checkpointer.resume(trainer)
    for progress in trainer.run():
        if config["on_look"]:
            config["on_look"](trainer, progress)
        if checkpointer.rank == 0:
            note = ", ".join(f"{name} {value:.3f}" for name, value in progress.valid_accuracy.items())
            log.write(
                done=progress.step,
                total=trainer.settings.steps,
                note=f"valid: {note}",
                step=progress.step,
                loss=progress.loss,
                valid_accuracy=progress.valid_accuracy,
            )
        if checkpointer.due():
            clock = torch.tensor(time.monotonic() - started)
            checkpointer.save(trainer.state() | {"seconds": clock}, step=progress.step)
    return time.monotonic() - started


def summary_of(trainer: RewardTrainer, seconds: float) -> dict[str, Any]:
    """What is told of a training that is done."""
    return {"valid_accuracy": trainer.best, "steps": trainer.step_number, "seconds": round(seconds, 2)}


def user_tables(
    prepared: Prepared, columns: dict[str, np.ndarray], graph: Location | None, *, seed: int, models: Sequence[str] = MODELS
) -> dict[str, UserTable | None]:
    """What each of `models` knows of the users: nothing, their embeddings, or (where they are known) their true groups.

    Args:
        graph: What the graph stage left; None for a method without a graph, whose users are nobody here.
    """
    tables: dict[str, UserTable | None] = {"uniform": None, "personalised": None}
    if graph is not None and "personalised" in models:
        tables["personalised"] = _personal_users(local_copy(graph), columns, seed=seed)
    groups = prepared.groups()
    if groups is not None:
        # A row a group, not a user: users of one group then share what is computed for it.
        group = groups.argmax(1).numpy()
        tables["oracle"] = UserTable(torch.eye(groups.shape[1]), group[columns["user"]])
    return {name: table for name, table in tables.items() if name in models}


def _personal_users(graph: Path, columns: dict[str, np.ndarray], *, seed: int) -> UserTable:
    """The users' embeddings, for training comparisons without the fold that each is in.

    An embedding made from a comparison already holds its answer; a head that learns from the two together trusts the
    embedding more than it may for fresh choices.
    """
    whole = read_tensors(graph / "users.safetensors")["embedding"]
    folds = read_tensors(graph / "folds.safetensors")["embedding"]
    fold = fold_of(torch.tensor(columns["number"]), folds=len(folds), seed=seed).numpy()
    use_fold = ~columns["valid"] & (len(folds) > 0)
    row = columns["user"] + len(whole) * np.where(use_fold, 1 + fold, 0)
    return UserTable(torch.cat([whole, *folds]), row, count=len(whole))
