"""The adapter stage without Ray: its one worker runs in this process."""

from types import SimpleNamespace

import pytest
import torch

from penchant.adapters.config import (
    AdapterSettings,
    AnswerSettings,
    FittingSettings,
    LampSettings,
    PersonalSettings,
    TaskBaseSettings,
    TaskStageSettings,
)
from penchant.adapters.variants import kinds_study, table_rows
from penchant.errors import BackboneError, ConfigError
from penchant.runtime.training import adapter_stage, lamp_run
from penchant.runtime.training.config import WorkerSettings
from penchant.runtime.training.lamp_run import LampRun
from penchant.runtime.training.progress import ProgressLog


@pytest.fixture
def fit(tiny, tmp_path, monkeypatch):
    """Fits users into a folder."""
    base, tokenizer = tiny.make_base("label", torch.float32)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    alone = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(adapter_stage.ray.train, "get_context", lambda: alone)
    monkeypatch.setattr(adapter_stage, "prepare_worker", lambda config: "cpu")
    monkeypatch.setattr(adapter_stage, "run_stage", lambda loop, config, **named: loop(config))

    def fitting(users, **settings):
        told = PersonalSettings(
            base=TaskBaseSettings(name=str(tmp_path / "base"), max_tokens=32), fitting=FittingSettings(epochs=1), **settings
        )
        return adapter_stage.fit_adapters(users, told, tmp_path / "out", WorkerSettings())

    return fitting


def test_nothing_beside_the_store_says_who_was_fitted_on_what(fit, tiny, tmp_path):
    users = {name: tiny.make_examples("label", 3, seed=number) for number, name in enumerate(("ann-lee", "bob-ray"))}
    store = fit(users)
    assert sorted(store.users()) == sorted(users)
    store.delete("ann-lee")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert tmp_path / "out" / adapter_stage.PROGRESS in files
    for path in files:
        content = path.read_bytes()
        assert b"ann-lee" not in content
        assert not any(example.prompt.encode() in content for example in users["ann-lee"] if len(example.prompt) > 20)


def test_an_imported_adapter_stays_and_is_counted(fit, tiny, tmp_path):
    users = {name: tiny.make_examples("label", 3, seed=number) for number, name in enumerate(("ann", "bob"))}
    store = fit({"ann": users["ann"]})
    store.import_folder("bob", store.export("ann", tmp_path / "mine"))
    before = store.version("bob")
    fit(users)
    assert store.version("bob") == before
    warnings = [
        record["warning"] for record in ProgressLog(tmp_path / "out" / adapter_stage.PROGRESS).read() if "warning" in record
    ]
    assert len(warnings) == 1
    assert "1 imported are left" in warnings[0]
    fit(users, replace_imported=True)
    assert store.version("bob") != before


def test_what_the_base_cannot_do_is_told_before_task_bases_are_fitted(tiny, planted_tasks, tmp_path, monkeypatch):
    base, tokenizer = tiny.make_base("text", torch.float32)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.setattr(lamp_run, "run_stage", lambda *arguments, **named: pytest.fail("something was fitted"))
    settings = LampSettings(base=TaskBaseSettings(name=str(tmp_path / "base")))
    run = LampRun(planted_tasks["LaMP_3"], settings, kinds_study(settings), tmp_path / "out", WorkerSettings())
    with pytest.raises(BackboneError, match="does not go with a decoder's label head"):
        run.fit()


@pytest.fixture
def writing_run(tiny, planted_tasks, tmp_path, monkeypatch):
    """Makes runs over a base of 48 positions that writes, whose questions have 32 tokens at most."""
    base, tokenizer = tiny.make_base("text", torch.float32)
    base.config.max_position_embeddings = 48
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.setattr(lamp_run, "_share", lambda: (0, 1))
    monkeypatch.setattr(lamp_run, "prepare_worker", lambda config: "cpu")
    fitted = []
    monkeypatch.setattr(lamp_run, "run_stage", lambda loop, config, **named: (fitted.append(named["name"]), loop(config)))

    def make(rows, written, **adapter):
        settings = LampSettings(
            base=TaskBaseSettings(name=str(tmp_path / "base"), answers="text", max_tokens=32),
            adapter=AdapterSettings(**adapter),
            task=TaskStageSettings(fitting=FittingSettings(epochs=1)),
            answers=AnswerSettings(max_new_tokens=written),
        )
        return LampRun(planted_tasks["LaMP_4"], settings, table_rows(rows, settings), tmp_path / "out", WorkerSettings())

    return make, fitted


def test_an_answer_that_the_base_has_no_positions_for_is_told_before_anything_is_fitted(writing_run):
    make, fitted = writing_run
    with pytest.raises(ConfigError, match="49 tokens do not fit the base: it has 48 positions") as refused:
        make([], 17).fit()
    assert refused.value.where == "base.max_tokens + answers.max_new_tokens"
    with pytest.raises(ConfigError, match="49 tokens") as refused:
        make(["oppu"], 12, kind="prompt_tuning", virtual_tokens=5).fit()
    assert refused.value.where == "base.max_tokens + adapter.virtual_tokens + answers.max_new_tokens"
    assert not fitted


def test_longer_answers_are_told_where_task_bases_are_there(writing_run):
    make, fitted = writing_run
    make([], 16).fit()
    assert len(fitted) == 1
    make([], 16).fit()
    with pytest.raises(ConfigError, match="49 tokens do not fit"):
        make([], 17).fit()
    assert len(fitted) == 1
