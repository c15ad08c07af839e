import types

import numpy as np
import pytest
import torch

from penchant.artifacts import write_json
from penchant.graph.training import GraphProgress
from penchant.reward.config import RewardSettings
from penchant.reward.expert_training import ExpertProgress
from penchant.reward.training import RewardData, RewardTrainer, UserTable
from penchant.runtime.training.prepared import prepare
from penchant.runtime.tuning import looks as looks_module
from penchant.runtime.tuning.looks import Heads, Looks, count_compared
from penchant.tensors import write_tensors


def test_looks_report_the_best_so_far_and_what_a_step_takes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(looks_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(looks_module, "count_parameters", lambda trainer: 7)
    monkeypatch.setattr(looks_module, "count_compared", lambda trainer: 9)
    reports = []
    looks = Looks(reports.append, shared_seconds=3.0)
    for step, accuracy in ((5, 0.6), (10, 0.5), (15, 0.7)):
        now[0] += 10
        looks(types.SimpleNamespace(), GraphProgress(step, 0.1, accuracy, best=True))
    assert [(report["step"], report["accuracy"], report["valid_accuracy"]) for report in reports] == [
        (5, 0.6, 0.6),
        (10, 0.6, 0.5),
        (15, 0.7, 0.7),
    ]
    assert reports[-1]["step_seconds"] == 2.0
    assert reports[-1]["training_seconds"] == 30.0
    assert reports[-1]["parameters"] == 7


def test_a_step_of_the_experts_is_timed_without_its_look(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(looks_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(looks_module, "count_parameters", lambda trainer: 7)
    monkeypatch.setattr(looks_module, "count_compared", lambda trainer: 9)
    trainer = looks_module.ExpertTrainer.__new__(looks_module.ExpertTrainer)
    reports = []
    looks = Looks(reports.append, shared_seconds=0.0)
    for step in range(1, 9):
        now[0] += 1 if step % 4 else 21
        looks(trainer, ExpertProgress(step, {}, {} if step % 4 else {"personalised": 0.5}, 0))
    assert [report["step"] for report in reports] == [4, 8]
    assert reports[-1]["step_seconds"] == 1.0
    assert reports[-1]["training_seconds"] == pytest.approx(48.0)


def test_a_look_at_few_prompts_counts_as_the_heads_on_all_plus_what_the_experts_gain(planted, tmp_path, monkeypatch):
    dataset, _ = planted
    prepared = prepare(dataset, tmp_path / "prepared")
    random = np.random.default_rng(0)
    features = torch.from_numpy(random.normal(size=(len(dataset.response_ids), 6))).half()
    write_tensors(prepared.folder / "features.safetensors", {"features": features})
    columns = prepared.comparisons()
    users = UserTable(torch.from_numpy(random.normal(size=(prepared.num_users, 3)).astype(np.float32)), columns["user"])
    coded = {name: columns[name] for name in ("chosen", "rejected", "valid")}
    data = RewardData(feature_RF=prepared.features().float(), users={"personalised": users}, **coded)
    heads = RewardTrainer(RewardSettings(steps=20), data)
    list(heads.run())
    write_tensors(tmp_path / "heads" / "personalised.safetensors", heads.best_state["personalised"])
    write_json(tmp_path / "heads" / "reward.json", {"valid_accuracy": heads.best})
    valid = np.flatnonzero(columns["valid"])
    few = valid[:: len(valid) // 20]
    heads.heads["personalised"].load_state_dict(heads.best_state["personalised"])
    heads.valid_rows = torch.from_numpy(few)
    on_few = heads.validate()["personalised"]
    assert on_few != heads.best["personalised"]
    trainer = types.SimpleNamespace(looks=np.array_split(few, 3), data=data)
    before = Heads(tmp_path / "heads", RewardSettings().head, prepared.folder)
    monkeypatch.setattr(looks_module, "count_parameters", lambda trainer: 7)
    reports = []
    looks = Looks(reports.append, shared_seconds=0.0, heads=before)
    for step, gain in ((1, 0.0), (2, 0.05)):
        looks(trainer, ExpertProgress(step, {}, {"personalised": on_few + gain}, 0))
    assert reports[0]["compared"] == len(few)
    assert count_compared(heads) == len(few) < count_compared(RewardTrainer(RewardSettings(), data)) == len(valid)
    assert reports[0]["accuracy"] == pytest.approx(heads.best["personalised"])
    assert reports[1]["accuracy"] == pytest.approx(heads.best["personalised"] + 0.05)
