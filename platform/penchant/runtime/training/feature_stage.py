"""The feature stage: the frozen base model over every text, once, shared among the workers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import ray.train
from ray.train.collective import barrier

from penchant.artifacts import fingerprint
from penchant.backbone.cache import FeatureCache, text_key
from penchant.backbone.config import BackboneSettings
from penchant.backbone.features import FeatureExtractor, cache_name
from penchant.runtime.training.prepared import Prepared
from penchant.runtime.training.progress import open_log
from penchant.runtime.training.workers import prepare_worker
from penchant.storage import add_files, collect_files, default_cache_folder, is_remote


def feature_cache(settings: BackboneSettings) -> FeatureCache:
    """The feature cache of a backbone, in the cache folder."""
    return FeatureCache(default_cache_folder() / "features" / cache_name(settings))


def missing_texts(settings: BackboneSettings, prepared: Prepared) -> int:
    """How many texts the cache lacks; when none, no worker is needed."""
    found = feature_cache(settings).keys()
    return len({key for batch in prepared.text_batches() for key in map(text_key, batch) if key not in found})


def feature_loop(config: dict[str, Any]) -> None:
    """What each worker runs: its share of the texts that the cache lacks. The cache itself is what it resumes from."""
    device = prepare_worker(config)
    context = ray.train.get_context()
    settings = BackboneSettings.model_validate(config["backbone"])
    prepared, log = Prepared.open(config["prepared"]), open_log(config["log"])
    cache = config["cache"]
    folder = node_folder(cache) if is_remote(cache) else Path(cache)
    extractor = FeatureExtractor(settings, FeatureCache(folder), device)
    started = time.monotonic()

    def report(done: int, total: int) -> None:
        if context.get_world_rank() == 0:
            log.write(done=done, total=total, note=f"{done / max(1e-9, time.monotonic() - started):.0f} texts/s a worker")

    workers = {"rank": context.get_world_rank(), "world_size": context.get_world_size()}
    extractor.fill_cache(prepared.text_batches(), **workers, on_progress=report)
    if is_remote(cache):
        barrier()
        if context.get_local_rank() == 0:
            add_files(folder, cache)


def take_features(uri: str, settings: BackboneSettings) -> None:
    """Adds the blocks that workers have left at a URI to this machine's feature cache."""
    blocks, cache = node_folder(uri), feature_cache(settings).folder
    collect_files(uri, blocks)
    cache.mkdir(parents=True, exist_ok=True)
    for path in blocks.iterdir():
        os.replace(path, cache / path.name)


def node_folder(uri: str) -> Path:
    """Where the workers of a node keep what they make for a URI until they are done: a restart of the group finds it again."""
    return default_cache_folder() / "work" / fingerprint(uri)[:16]
