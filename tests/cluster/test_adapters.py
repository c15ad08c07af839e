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
    assert {record["worker"] for record in records if "worker" in record} == {0, 1}
    assert any("is lost" in record.get("warning", "") for record in records)
    for user, alone in fit_here(settings, users).items():
        assert store.card(user).loss == pytest.approx(alone.loss, rel=0.02)
        if len(users[user]) > 10:
            continue  # in float32, hundreds of steps of Adam make much of what rounding made of other rows in the batch
        for name, value in store.get(user).items():
            torch.testing.assert_close(value, alone.tensors[name], rtol=0, atol=1e-3, msg=f"{user} {name}")


@pytest.fixture(scope="module")
def review_base(tmp_path_factory):
    """A planted rating task in OPPU's layout, and a tiny encoder of random weights that knows its words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from penchant.data.lamp import find_task
    from penchant.data.lamp.planted import LampWorld, save_planted_lamp
    from penchant.data.lamp.reading import read_lamp

    folder = tmp_path_factory.mktemp("reviews")
    world = LampWorld(task="3", users=6, other_users=10, items=24, queries=4, noise=0, layout="oppu")
    save_planted_lamp(world, folder / "lamp")
    data = read_lamp(folder / "lamp", find_task("3"))
    words = sorted({word for user in data.others.values() for item in user.items for word in item.fields["text"].split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate([*special, *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    size = {"vocab_size": len(words) + 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(**size, intermediate_size=64, max_position_embeddings=80)).save_pretrained(folder / "base")
    fast.save_pretrained(folder / "base")
    return folder / "lamp", folder / "base"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_from_lamp_files_to_a_table(review_base, tmp_path):
    import ray
    from typer.testing import CliRunner

    from penchant.artifacts import read_json
    from penchant.cli import app
    from penchant.errors import OutputError

    lamp, base = review_base
    out = tmp_path / "run"

    def run(*arguments):
        overrides = [f"base.name={base}", "base.max_tokens=64", "adapter.r=2", "fitting.epochs=15", "fitting.learning_rate=0.01"]
        files = ["--lamp", str(lamp), "--task", "3", "--out", str(out)]
        command = ["adapters", *arguments, *files, *overrides, "task.fitting.learning_rate=0.01"]
        result = CliRunner().invoke(app, command, env={"COLUMNS": "200"}, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    try:
        assert "6 users have an adapter" in run("fit")
        made = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
        table = run("evaluate", "--rows", "rag-1,oppu")
        assert {path: path.stat().st_mtime_ns for path in made} == made, "what was there is used"
        with pytest.raises(OutputError, match="with other settings"):
            run("evaluate", "--rows", "oppu", "task.fitting.epochs=1")
    finally:
        ray.shutdown()
    assert "oppu, wrong user" in table
    assert "rag-1: 24 of 24 prompts are longer than base.max_tokens=64" in table
    results = read_json(out / "evaluation.json")
    assert len(results["notes"]) == 1, "questions alone are not"
    rows = results["groups"]["all users"]["rows"]
    assert list(rows) == ["commonest answer", "mean stars", "base", "rag-1", "oppu", "oppu, wrong user"]
    mae = {name: cells["mae"]["value"] for name, cells in rows.items()}
    # Planted users differ by up to two stars for the same text.
    assert mae["oppu"] < min(mae["base"], mae["oppu, wrong user"])
    assert (out / "evaluation.html").is_file()
    assert (out / "bm25-1" / "base" / "config.json").is_file()
    assert not (out / "bm25-1" / "lora").exists(), "no row wants adapters there"
