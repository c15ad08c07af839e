"""Adapters under Ray Train: two workers give what one process gives, and a worker that is killed costs nobody else's adapter."""

import os
import signal
import threading
import time

import psutil
import pytest
import torch
from transformers import BertForSequenceClassification

from penchant.adapters.bases import load_task_base, lowest_adapted, peft_config
from penchant.adapters.config import AdapterSettings, FittingSettings, PersonalSettings, TaskBaseSettings
from penchant.adapters.examples import Example
from penchant.adapters.fitting import AdapterFitter
from penchant.adapters.items import ItemReader
from penchant.backbone.grouped import GroupedModel
from penchant.errors import DataError

LABELS = ("low", "high")


def fit_here(settings, users):
    base, tokenizer = load_task_base(settings.base)
    lowest = lowest_adapted(base, settings.adapter)
    model = GroupedModel(base, peft_config(settings.adapter, base, settings.base.name), slots=3, lowest=lowest)
    reader = ItemReader(base, tokenizer, max_tokens=settings.base.max_tokens, lowest=lowest)
    return {fitted.user: fitted for fitted in AdapterFitter(model, reader, settings.fitting).fit(users)}


@pytest.mark.cluster
def test_workers_share_the_users_and_survive_a_kill(tiny_backbone, planted, tmp_path):
    import ray

    from penchant.runtime.cluster import start_ray
    from penchant.runtime.training.adapter_stage import fit_adapters
    from penchant.runtime.training.config import WorkerSettings
    from penchant.runtime.training.progress import ProgressLog

    folder = tmp_path / "base"
    base, tokenizer = load_task_base(TaskBaseSettings(name=tiny_backbone, labels=LABELS))
    assert isinstance(base, BertForSequenceClassification)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = PersonalSettings(
        base=TaskBaseSettings(name=str(folder), max_tokens=32),
        adapter=AdapterSettings(r=2, layers=1),
        fitting=FittingSettings(epochs=2, batch_size=4, users_at_once=2, cache_gib=0, learning_rate=0.01),
    )
    texts = planted[0].responses
    users = {
        f"user {number}": [Example(texts[(7 * number + at) % len(texts)], LABELS[(number + at) % 2]) for at in range(count)]
        for number, count in enumerate((400, 3, 5, 3, 400, 6))
    }
    with pytest.raises(DataError, match="'purple'"):
        fit_adapters({"a": [Example("text", "purple")]}, settings, tmp_path / "bad", WorkerSettings())
    log = ProgressLog(tmp_path / "out" / "progress" / "adapters.jsonl")
    killed = threading.Event()

    def kill_one() -> None:
        """The worker that has just finished a user, in the middle of the others."""
        while not log.read():
            time.sleep(0.05)
        mine = psutil.Process().children(recursive=True)
        os.kill(next(process.pid for process in mine if "RayTrainWorker" in " ".join(process.cmdline())), signal.SIGKILL)
        killed.set()

    start_ray(num_cpus=2)
    try:
        threading.Thread(target=kill_one, daemon=True).start()
        store = fit_adapters(users, settings, tmp_path / "out", WorkerSettings(num_workers=2, threads=1))
        records = log.read()
        again = fit_adapters(users, settings, tmp_path / "out", WorkerSettings(num_workers=2, threads=1))
        assert log.read() == records, "nothing is left to do"
    finally:
        ray.shutdown()
    assert killed.is_set()
    assert sorted(store.users()) == sorted(users) == sorted(again.users())
    assert {record["worker"] for record in records} == {0, 1}
    for user, alone in fit_here(settings, users).items():
        assert store.card(user).loss == pytest.approx(alone.loss, rel=0.02)
        if len(users[user]) > 10:
            continue  # in float32, hundreds of steps of Adam make much of what rounding made of other rows in the batch
        for name, value in store.get(user).items():
            torch.testing.assert_close(value, alone.tensors[name], rtol=0, atol=1e-3, msg=f"{user} {name}")
