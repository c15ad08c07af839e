"""What `penchant fit` says of a mistake, before anything is made."""

import sys

import pytest

from penchant.cli import main
from penchant.data.planted import PlantedWorld, save_planted


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "data"
    save_planted(PlantedWorld(users=60, unseen_users=12, prompts=40, comparisons_per_user=12, seed=3), folder)
    return folder


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("reward.steps=many", "reward.steps"),
        ("backbone.name=./not-there", "no base model in this folder"),
        ("backbone.name=some-org/some-model", "Without a network"),
        ("experts.num_experts=500", "500 experts are more than the 60 seen users"),
        ("experts.layers=9", "It has layers 0 to 1"),
        ("experts.target_modules=[q_proj]", "Its linear maps are called dense, key, query, value"),
        ("method=vlp", "'vpl'"),
        ("method.name=proxy method.attribute=country", "no column 'country'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(data, tmp_path, tiny_backbone, override, said, monkeypatch, capsys):
    names = () if override.startswith("backbone") else (f"backbone.name={tiny_backbone}",)
    command = ["penchant", "fit", "--data", str(data), "--out", str(tmp_path / "out"), *names, *override.split()]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
