"""Every recipe is settings that a fit takes as they are."""

import re
from pathlib import Path

import pytest

from penchant.config import dump_settings, load_settings, read_yaml
from penchant.graph.config import default_candidates
from penchant.reward.experts import mole_config
from penchant.runtime.jobs.settings import FitGraphJob
from penchant.runtime.study.settings import StudySettings
from penchant.runtime.training.config import FitSettings

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PARAMETERS = {"google/gemma-2b-it": 1_981_884_416, "google/gemma-7b-it": 7_751_248_896}
"""Without the embedding (arXiv 2403.08295, table 2)."""


COPL = [path for path in RECIPES if path.stem.startswith("copl")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_a_fits_settings(path):
    assert load_settings(FitSettings, path) != FitSettings()


@pytest.mark.parametrize("path", COPL, ids=lambda path: path.stem)
def test_copl_has_a_route_for_each_user_and_a_linear_head(path):
    settings = load_settings(FitSettings, path)
    assert not mole_config(settings.experts, user_dim=64).routes_are_few
    assert settings.reward.head.kind == "linear"


def changed(theirs, ours):
    return {key for key in type(theirs).model_fields if getattr(theirs, key) != getattr(ours, key)}


def test_the_recipe_at_the_size_of_minilm_leaves_nothing_else_of_copl_than_it_says():
    preset = load_settings(FitSettings, overrides=["method=copl"])
    recipe = load_settings(FitSettings, ROOT / "recipes" / "copl-paper.yaml")
    assert changed(preset, recipe) == {"graph", "experts"}
    said = read_yaml(ROOT / "recipes" / "copl-paper.yaml")
    assert changed(preset.experts, recipe.experts) == set(said["experts"])
    theirs, ours = (each.graph.candidates["published"] for each in (preset, recipe))
    assert changed(theirs.encoder, ours.encoder) == {"dim"}
    batches = {"batch_size", "num_epochs", "max_steps", "patience", "learning_rate", "lr_scheduler_type", "warmup_ratio"}
    assert changed(theirs.optimization, ours.optimization) == batches | {"weight_decay", "embedding_l2"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipes_settings_are_read_back_as_they_were_written(path, tmp_path):
    settings = load_settings(FitSettings, path)
    (tmp_path / "config.yaml").write_text(dump_settings(settings))
    assert load_settings(FitSettings, tmp_path / "config.yaml") == settings
    job = FitGraphJob.model_validate({"data": "x"} | settings.model_dump(mode="json"))
    assert FitSettings.model_validate(job.model_dump(include=set(FitSettings.model_fields))) == settings


def test_there_are_recipes():
    assert {path.stem for path in COPL} == {"copl-paper", "copl-gemma-2b", "copl-gemma-7b"}
    assert "mixture" in {path.stem for path in RECIPES}


def test_the_recipe_with_a_mixture_adds_it_to_what_is_tried_anyway():
    recipe = load_settings(FitSettings, ROOT / "recipes" / "mixture.yaml")
    candidates = dict(recipe.graph.candidates)
    added = candidates.pop("mixture")
    assert candidates == default_candidates()
    study = load_settings(StudySettings, ROOT / "study" / "frozen.yaml").parts["graph"].rows["penchant, a mixture too"].settings
    assert load_settings(FitSettings, values=study).graph.candidates == {**default_candidates(), "mixture": added}


def test_the_study_runs_copls_recipe():
    recipe = load_settings(FitSettings, ROOT / "recipes" / "copl-paper.yaml")
    row = load_settings(StudySettings, ROOT / "study" / "experts.yaml").parts["published"].rows["CoPL's method"].settings
    settings = load_settings(FitSettings, values=row)
    assert settings.model_copy(update={"evaluation": recipe.evaluation}) == recipe


@pytest.mark.parametrize("path", [path for path in RECIPES if "gemma" in path.stem], ids=lambda path: path.stem)
def test_what_a_recipe_says_it_needs_follows_from_its_settings(path):
    settings, text = load_settings(FitSettings, path), path.read_text(encoding="utf-8")
    tokens = settings.experts.steps * 128 * 2 * 512
    assert f"{tokens:,}" in text
    work = 6 * PARAMETERS[settings.backbone.name] * tokens
    assert f"{work:.2e}".replace("e+", "e") in text
    assert float(re.search(r"share of it: ([\d.]+) GPU hours", text)[1]) == pytest.approx(work / (312e12 * 0.4) / 3600, abs=0.05)
    reading = 2 * PARAMETERS[settings.backbone.name] * 2 * 60_917 * 512
    said = re.search(r"512 tokens: ([\d.]+) GPU hours, once", text)
    assert float(said[1]) == pytest.approx(reading / (312e12 * 0.4) / 3600, abs=0.05)
    optimization = settings.graph.candidates["published"].optimization
    rows, dim = 121_834 + 10_000, settings.graph.candidates["published"].encoder.dim
    passes = optimization.steps(round(5.3 * 60_917))
    assert f"{passes:,} steps" in text
    work = passes * rows * 4 * 3 * 6 * dim**2
    said = re.search(rf"= {work:.2e} in float32: ([\d.]+) GPU hours".replace("e+", "e"), text)
    assert float(said[1]) == pytest.approx(work / (19.5e12 * 0.4) / 3600, abs=0.05)
    asked = 10 * 2 * (2 * 10_500 + 500 * len([count for count in settings.evaluation.onboarding_counts if count]))
    assert f"{asked:,} passes" in text
    judging = 2 * PARAMETERS[settings.backbone.name] * asked * 512
    said = re.search(rf"{asked:,} passes x 512 tokens: ([\d.]+) GPU hours", text)
    assert float(said[1]) == pytest.approx(judging / (312e12 * 0.4) / 3600, abs=0.05)
