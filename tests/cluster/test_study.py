"""Fits of a study side by side on a cluster: each gives what it gives alone, and what one raises is told."""

import numpy as np
import pytest
import ray
from rich.console import Console

from penchant.artifacts import read_json
from penchant.config import validate_settings
from penchant.data import PreferenceDataset
from penchant.errors import ConfigError, DataError
from penchant.evaluation.judgements import read_judgements
from penchant.methods.registry import METHODS
from penchant.runtime.cluster import start_ray
from penchant.runtime.study.running import StudyRun
from penchant.runtime.study.settings import StudySettings
from penchant.runtime.training.evaluation_stage import evaluate
from penchant.runtime.training.stages import Stages

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster():
    start_ray(num_cpus=2)
    yield
    ray.shutdown()


def open_study(tiny_backbone, folder, **rows):
    small = {"encoder": {"dim": 8, "num_layers": 2}, "optimization": {"max_steps": 20}}
    values = {
        "title": "T",
        "data": ["planted"],
        "planted": {"planted": {"users": 60, "unseen_users": 12, "prompts": 40, "comparisons_per_user": 12}},
        "settings": {
            "backbone": {"name": tiny_backbone, "max_tokens": 64},
            "graph": {"candidates": {"text": small}, "folds": 2},
            "reward": {"steps": 60},
            "experts": {"num_experts": 0},
            "workers": {"threads": 1},
            "evaluation": {"resamples": 50},
        },
        "seeds": [0],
        "parts": {"methods": {"title": "Methods", "rows": rows}},
    }
    return StudyRun.open(validate_settings(StudySettings, values), folder, {})


def test_side_by_side_a_fit_gives_what_it_gives_alone_and_a_mistake_is_told(cluster, tiny_backbone, tmp_path, monkeypatch):
    rows = {"penchant": {}, "lore": {"settings": {"method": "lore"}}}
    rows["linear"] = {"settings": {"reward": {"head": {"kind": "linear"}}}}  # on the same graph
    beside = open_study(tiny_backbone, tmp_path / "beside", **rows)
    console = Console(record=True, width=200)
    beside.run(console, at_once=2)
    assert all(beside.is_done(cell) for cell in beside.cells())
    said = console.export_text()
    assert all(f"methods, planted: {row}, seed 0: seen " in said for row in rows)
    assert not list(beside.out.glob(".shared-*"))
    alone = open_study(tiny_backbone, tmp_path / "alone", lore=rows["lore"])
    alone.run(Console(quiet=True), at_once=1)
    (lore,) = alone.cells()
    assert {path.name for path in beside.folder(lore).iterdir()} == {path.name for path in alone.folder(lore).iterdir()}
    assert read_json(beside.folder(lore) / "row.json")["seconds"] > 0
    same_judgements(alone.folder(lore), beside.folder(lore))
    # A fit that shares nothing, as `penchant fit` makes it: uniform and the oracle are trained in its own stages.
    dataset = PreferenceDataset.load(beside.data["planted"])
    for cell in beside.cells():
        own = tmp_path / cell.row
        evaluate(Stages(dataset, cell.settings, own, Console(quiet=True), in_process=True))
        same_judgements(own, beside.folder(cell))
        own, shared = (read_json(folder / "metrics.json") for folder in (own, beside.folder(cell)))
        assert own["reward"]["valid_accuracy"] == shared["reward"]["valid_accuracy"]
        assert own["graph"].get("history") == shared["graph"].get("history")
        assert any("sees no user" in note for note in shared["notes"]) == (cell.row == "linear")

    rows |= {"too many": {"settings": {"experts": {"num_experts": 500}}}, "vpl": {"settings": {"method": "vpl"}}}
    rows |= {"no such change": {"change": {"drift": 0.5}}}
    wrong = open_study(tiny_backbone, tmp_path / "beside", **rows)
    monkeypatch.setattr("penchant.runtime.study.running.change_choices", refuse_drift)
    unchanged, mistake = sorted(wrong.run(Console(quiet=True), at_once=2), key=lambda error: type(error).__name__)[::-1]
    assert isinstance(mistake, ConfigError)
    assert "500 experts" in str(mistake)
    assert isinstance(unchanged, DataError)
    assert {cell.row for cell in wrong.cells() if not wrong.is_done(cell)} == {"too many", "no such change"}


def same_judgements(own, other):
    own, other = (read_judgements(folder / "judgements.parquet") for folder in (own, other))
    assert own.margins.keys() == other.margins.keys()
    for name, margin in own.margins.items():
        np.testing.assert_allclose(margin, other.margins[name], atol=1e-6, err_msg=name)


def refuse_drift(dataset, change, *, seed):
    if change.drift:
        raise DataError("No groups.")
    return dataset


def test_every_method_is_fitted_and_judged(cluster, tiny_backbone, tmp_path):
    rows = {f"{name} row": {"settings": {"method": name}} for name in METHODS}
    rows |= {"one kind": {"settings": {"method": {"name": "mixture", "kinds": 1}}}}  # a vector of one number has no map
    every = open_study(tiny_backbone, tmp_path / "every", **rows)
    assert every.run(Console(quiet=True), at_once=2) == []
    assert all(every.is_done(cell) for cell in every.cells())
    nobody = read_judgements(
        every.folder(next(cell for cell in every.cells() if cell.row == "uniform row")) / "judgements.parquet"
    )
    np.testing.assert_allclose(nobody.margins["personalised"], nobody.margins["uniform"], atol=1e-6)


def test_plain_lora_is_the_uniform_model_of_a_fit_with_experts(cluster, tiny_backbone, tmp_path):
    experts = {"experts": {"num_experts": 1, "steps": 6, "layers": 1}}
    rows = {"lora": {"settings": {"method": "lora", **experts}}, "penchant": {"settings": experts}}
    study = open_study(tiny_backbone, tmp_path / "lora", **rows)
    assert study.run(Console(quiet=True), at_once=2) == []
    lora, penchant = (read_judgements(study.folder(cell) / "judgements.parquet").margins for cell in study.cells())
    np.testing.assert_allclose(lora["personalised"], penchant["uniform"], atol=1e-5)
    np.testing.assert_array_equal(lora["personalised"], lora["wrong_user"])
    assert np.abs(lora["personalised"] - lora["uniform"]).max() > 1e-3, "the head on the frozen base stands beside it"
