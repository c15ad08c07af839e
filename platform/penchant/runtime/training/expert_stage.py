"""The experts' phase under Ray Train: uniform (plain LoRA), personalised and (where groups are known) oracle, side by side."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import ray.train.torch
import torch
from torch import nn

from penchant.artifacts import write_json
from penchant.backbone.activations import ActivationCache, ActivationReader, activation_folder
from penchant.backbone.cache import text_key
from penchant.backbone.config import BackboneSettings
from penchant.backbone.loading import load_backbone, outline
from penchant.backbone.reading import TextReader, lowest_layer, trainable_part
from penchant.reward.config import ExpertSettings, HeadSettings
from penchant.reward.expert_training import ExpertData, ExpertTrainer
from penchant.reward.experts import ExpertModel, add_experts, add_lora, start_gates_as_clusters
from penchant.reward.heads import RewardHead, make_head
from penchant.reward.training import UserTable
from penchant.runtime.training.checkpoints import Checkpointer
from penchant.runtime.training.prepared import Prepared
from penchant.runtime.training.progress import open_log
from penchant.runtime.training.reward_stage import user_tables
from penchant.runtime.training.sharding import average, shard_base
from penchant.runtime.training.workers import prepare_worker
from penchant.scoring.experts import save_model
from penchant.scoring.onboarding import fit_prototypes
from penchant.storage import is_remote, local_copy, replacing
from penchant.tensors import read_tensors

_CLUSTERED_USERS = 10_000
"""Users, about, whose k-means the gates start as."""


def missing_activations(backbone: BackboneSettings, settings: ExpertSettings, prepared: Prepared) -> int:
    """How many texts the activation cache lacks; when none, or where nothing is cached, no worker is needed for it."""
    lowest = lowest_layer(outline(backbone), settings.layers)
    if lowest == 0 or settings.activation_gib == 0:
        return 0
    cache = ActivationCache(activation_folder(backbone, lowest), budget_bytes=0)
    return sum(text_key(text) not in cache for batch in prepared.text_batches() for text in batch)


def activation_loop(config: dict[str, Any]) -> None:
    """What each worker runs first: its share of the lower activations that the cache lacks. The cache is what it resumes from."""
    device = prepare_worker(config)
    context, log = ray.train.get_context(), open_log(config["log"])
    settings, experts = _settings(config)
    prepared = Prepared.open(config["prepared"])
    whole, tokenizer = load_backbone(settings, device)
    reader = cached_activations(whole, tokenizer, settings, experts, workers=context.get_world_size())
    if reader is None:
        return
    rank, workers = context.get_world_rank(), context.get_world_size()
    if is_remote(config["prepared"]):
        # Nodes that share no disk share no cache either: each wants all texts.
        rank, workers = context.get_local_rank(), context.get_local_world_size()
    started, looked_at = time.monotonic(), 0

    def report(done: int, total: int) -> None:
        if context.get_world_rank() == 0:
            done += looked_at
            rate = done / max(1e-9, time.monotonic() - started)
            log.write(done=done, total=-(-prepared.num_responses // workers), note=f"{rate:.0f} texts/s a worker")

    for batch in prepared.text_batches():
        mine = batch[rank::workers]
        if reader.fill(mine, on_progress=report):
            break  # its part of the budget is used up
        looked_at += len(mine)


def expert_loop(config: dict[str, Any]) -> None:
    """What each worker runs: its prompts of every step, from the last checkpoint on."""
    device = prepare_worker(config)
    backbone, settings = _settings(config)
    prepared, log = Prepared.open(config["prepared"]), open_log(config["log"])
    checkpointer = Checkpointer(config["checkpoint_seconds"], log)
    whole, tokenizer = load_backbone(backbone, device)
    reader = TextReader(tokenizer, backbone, cached_activations(whole, tokenizer, backbone, settings), device)
    columns = prepared.comparisons()
    reward = local_copy(config["reward"])
    tables = user_tables(prepared, columns, config["graph"], seed=config["graph_seed"], models=config["models"])
    models = _models(whole, backbone, settings, HeadSettings.model_validate(config["head"]), tables, reward)
    for model in models.values():
        model.to(device)
        model.precision = _precision(settings, device)
        if settings.gradient_checkpointing:
            model.checkpoint_gradients()
    parallel: dict[str, Any] = {"wrap": ray.train.torch.prepare_model}
    if settings.sharding == "fsdp" and checkpointer.world_size > 1:
        del whole  # nothing but the shards is to hold the weights; a reader of lower layers still does
        for model in models.values():
            shard_base(model, device)
        parallel = {"average": average}
    data = ExpertData(
        texts=prepared.texts(),
        chosen=columns["chosen"],
        rejected=columns["rejected"],
        prompt=prepared.prompts()[columns["chosen"]],
        valid=columns["valid"],
        users=tables,
    )
    workers = {"rank": checkpointer.rank, "world_size": checkpointer.world_size}
    trainer = ExpertTrainer(settings, data, models, reader, **workers, **parallel, device=device)
    started = time.monotonic() - checkpointer.resume(trainer)
    accuracy: dict[str, float] = {}
    for progress in trainer.run():
        if config["on_look"]:
            config["on_look"](trainer, progress)
        accuracy = progress.valid_accuracy or accuracy
        if checkpointer.rank == 0:
            rate = progress.sequences / max(1e-9, time.monotonic() - started)
            note = ", ".join(f"{name} {value:.3f}" for name, value in progress.loss.items())
            log.write(
                done=progress.step,
                total=settings.steps,
                note=f"loss: {note} ({rate:.0f} texts/s)",
                step=progress.step,
                loss=progress.loss,
                valid_accuracy=progress.valid_accuracy,
            )
        if checkpointer.due():
            clock = torch.tensor(time.monotonic() - started)
            checkpointer.save(trainer.state() | {"seconds": clock}, step=progress.step)
    summary = {
        # Taken up from a checkpoint of the very last step, it has not looked yet.
        "valid_accuracy": accuracy or trainer.validate(),
        "steps": trainer.step_number,
        "sequences": trainer.sequences,
        "seconds": round(time.monotonic() - started, 2),
        "activations": None if reader.activations is None else reader.activations.describe(data.texts),
    }
    if checkpointer.rank == 0:
        with replacing(config["out"]) as draft:
            for name, model in models.items():
                save_model(model, draft / name, base_name=backbone.name)
            write_json(draft / "experts.json", summary)


def _settings(config: dict[str, Any]) -> tuple[BackboneSettings, ExpertSettings]:
    return BackboneSettings.model_validate(config["backbone"]), ExpertSettings.model_validate(config["experts"])


def cached_activations(
    whole: nn.Module, tokenizer: Any, backbone: BackboneSettings, settings: ExpertSettings, *, workers: int = 1
) -> ActivationReader | None:
    """The cached activations that enter the lowest adapted layer; None where all layers are adapted."""
    lowest = lowest_layer(whole, settings.layers)
    if lowest == 0:
        return None
    folder, budget = activation_folder(backbone, lowest), int(settings.activation_gib * 2**30)
    cache = ActivationCache(folder, budget_bytes=budget)
    cache.budget_bytes = cache.bytes_used + max(0, budget - cache.bytes_used) // workers  # each fills its part of what is left
    return ActivationReader(whole, tokenizer, backbone, lowest, cache)


def _models(
    whole: nn.Module,
    backbone: BackboneSettings,
    settings: ExpertSettings,
    head: HeadSettings,
    tables: dict[str, UserTable | None],
    reward: Path,
) -> dict[str, ExpertModel]:
    """Each model with fresh adapters, over one base, and the frozen phase's head; the same on every worker."""
    base, models = trainable_part(whole, settings.layers, dropout=settings.base_dropout), {}
    for name, users in tables.items():
        weights = read_tensors(reward / f"{name}.safetensors")
        user_dim = 0 if users is None else users.embedding.shape[1]
        made = make_head(head, feature_dim=len(weights["standardise.mean"]), user_dim=user_dim)
        made.load_state_dict(weights)
        models[name] = start_model(base, made, backbone, settings, users)
    return models


def start_model(
    base: nn.Module, head: RewardHead, backbone: BackboneSettings, settings: ExpertSettings, users: UserTable | None
) -> ExpertModel:
    """A head over a base with fresh adapters: experts, or plain LoRA for the model without users. Fixed by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if users is None:
            return ExpertModel(add_lora(base, settings), head, backbone)
        model = ExpertModel(add_experts(base, settings, user_dim=users.embedding.shape[1]), head, backbone)
    if settings.gate_init == "clusters":
        start_gates_as_clusters(model, torch.from_numpy(fit_prototypes(_sample(users), settings.num_experts, seed=settings.seed)))
    return model


def _sample(users: UserTable) -> np.ndarray:
    """Whole embeddings of users, for k-means. Those that leave a fold out stand behind them in the table, and lie a little apart:
    clusters that tell the two kinds from each other would send a user elsewhere in training than in use."""
    whole = users.embedding[: users.count]
    return whole[:: max(1, len(whole) // _CLUSTERED_USERS)].numpy()


def _precision(settings: ExpertSettings, device: torch.device) -> torch.dtype | None:
    if settings.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return torch.bfloat16 if settings.precision == "bfloat16" else None
