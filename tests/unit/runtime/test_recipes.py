"""Every recipe is settings that a fit takes as they are."""

from pathlib import Path

import pytest

from penchant.config import load_settings
from penchant.reward.experts import mole_config
from penchant.runtime.training.config import FitSettings

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_a_fits_settings(path):
    settings = load_settings(FitSettings, path)
    assert not mole_config(settings.experts, user_dim=64).routes_are_few
    assert settings.reward.head.kind == "linear"


def test_there_are_recipes():
    assert RECIPES
