"""The adapter stage: every user's adapter, fitted on a group of workers of which each owns a share of the users.

Nothing passes between workers: a user's adapter does not depend on others. The store is what the stage resumes from: whoever is
in it, fitted on the same examples with the same settings, is done.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.train

from penchant.adapters.bases import base_fingerprint, load_task_base, lowest_adapted, peft_config
from penchant.adapters.config import PersonalSettings
from penchant.adapters.examples import Example
from penchant.adapters.filling import fill, survey
from penchant.adapters.fitting import AdapterFitter
from penchant.adapters.items import ItemReader
from penchant.adapters.store import AdapterStore
from penchant.adapters.tables import read_examples, write_examples
from penchant.artifacts import fingerprint
from penchant.backbone.grouped import GroupedModel
from penchant.backbone.loading import check_window
from penchant.errors import DataError
from penchant.runtime.training.config import WorkerSettings
from penchant.runtime.training.progress import ProgressLog, open_log
from penchant.runtime.training.workers import prepare_worker, run_stage
from penchant.storage import default_cache_folder

PROGRESS = "progress/adapters.jsonl"
"""Where in the folder the learning curves are."""
_EXAMPLES = "examples.parquet"


def fit_adapters(
    users: Mapping[str, Sequence[Example]],
    settings: PersonalSettings,
    out: Path,
    workers: WorkerSettings,
    *,
    log: Path | None = None,
) -> AdapterStore:
    """Fits an adapter for everybody, under Ray Train; Ray must be running. What the store in `out` has already is kept.

    Imported adapters stay, too, unless the settings say otherwise, and encrypted ones always; the log says how many.

    Args:
        users: Each user's examples, oldest first.
        out: Gets `store/`, `progress/adapters.jsonl` and, while it runs, what the workers read; on storage that all nodes share.
        log: Where the learning curves go instead.

    Raises:
        DataError: A user has no example, or one that cannot be fitted on; before a worker is started.
        BackboneError: The base is not there or cannot be adapted so; before a worker is started.
        ConfigError: The base has fewer positions than `base.max_tokens`; before a worker is started.
        ArtifactError: The store is of another base or kind of adapter.
        TrainingError: A loss is not finite, or workers died more often than `workers.max_failures`.
        OutputError: `out` cannot be written.
    """
    out = out.resolve()
    if not users:
        raise DataError("There is no user.", where="users", fix="Give at least one user's examples.")
    base, tokenizer = load_task_base(settings.base)
    reader = ItemReader(base, tokenizer, max_tokens=settings.base.max_tokens)
    for user, examples in users.items():
        reader.check(user, examples)
    model = GroupedModel(base, peft_config(settings.adapter, base, settings.base.name), slots=1)
    check_window(base.config, settings.base.max_tokens + model.prompt_tokens, where="base.max_tokens")
    store = _store(out, base, settings, model)
    found = survey(store, settings.fitting, reader, users, replace_imported=settings.replace_imported)
    missing, place = found.lacking, (log or out / PROGRESS).resolve()
    for words in found.warnings():
        ProgressLog(place).write(warning=words)
    del base, reader, model
    if missing:
        write_examples(out / _EXAMPLES, {user: users[user] for user in missing})
        config = {
            "out": str(out),
            "settings": settings.model_dump(mode="json"),
            "cache": str(default_cache_folder()),
            "log": str(place),
        }
        name = f"adapters-{fingerprint([config['settings'], sorted(missing)])[:10]}"
        run_stage(adapter_loop, config, name=name, storage=out / "checkpoints", settings=workers)
        (out / _EXAMPLES).unlink()  # what users wrote is nowhere beside their own adapters
    return store


def _store(out: Path, base: Any, settings: PersonalSettings, model: GroupedModel) -> AdapterStore:
    return AdapterStore.create(out / "store", fingerprint=base_fingerprint(base), config=model.config, shapes=model.shapes)


def adapter_loop(config: dict[str, Any]) -> None:
    """What each worker runs: the users whom it owns and the store lacks."""
    device = prepare_worker(config)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    settings, out = PersonalSettings.model_validate(config["settings"]), Path(config["out"])
    users = read_examples(out / _EXAMPLES, rank=rank, world_size=world_size)
    if not users:
        return
    base, tokenizer = load_task_base(settings.base, device)
    lowest, peft = lowest_adapted(base, settings.adapter), peft_config(settings.adapter, base, settings.base.name)
    model = GroupedModel(base, peft, slots=min(len(users), settings.fitting.users_at_once), lowest=lowest)
    store = _store(out, base, settings, model)
    reader = ItemReader(
        base,
        tokenizer,
        max_tokens=settings.base.max_tokens,
        lowest=lowest,
        cache_bytes=int(settings.fitting.cache_gib * 2**30 / world_size),
        cache_folder=Path(config["cache"]),
    )
    log, started, total = open_log(config["log"]), time.monotonic(), len(users)
    already = total - len(survey(store, settings.fitting, reader, users, replace_imported=settings.replace_imported).lacking)
    fitter = AdapterFitter(model, reader, settings.fitting)
    for number, fitted in enumerate(fill(store, fitter, users, replace_imported=settings.replace_imported), start=1):
        rate = number / (time.monotonic() - started)
        log.write(
            # A digest of the user's id: the log stays when a user is deleted.
            worker=rank, user=store.place(fitted.user).name, steps=fitted.steps,
            loss=fitted.loss, held_out_loss=fitted.held_out_loss,
            done=world_size * (already + number), total=world_size * total, note=f"{3600 * rate:,.0f} users an hour a worker",
        )  # fmt: skip
