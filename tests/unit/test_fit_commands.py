"""What `penchant fit` says of a mistake, before anything is made."""

import sys

import pytest

from penchant import cli
from penchant.cli import main
from penchant.data import planted
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


class Planned(Exception):
    """The demo would start."""


@pytest.fixture
def demo(tmp_path, monkeypatch, capsys):
    """Runs `penchant demo --out` in an empty folder until it would train; returns what it planned, or what it said."""

    def run(out):
        def plan(data, out, *_):
            raise Planned(data, out)

        monkeypatch.setattr(cli, "_stages", plan)
        monkeypatch.setattr(planted, "PlantedWorld", lambda: PlantedWorld(users=60, unseen_users=12, prompts=40))
        monkeypatch.setattr(sys, "argv", ["penchant", "demo", "--out", out])
        with pytest.raises((Planned, SystemExit)) as stop:
            main()
        return stop.value.args if isinstance(stop.value, Planned) else capsys.readouterr().err

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return run


@pytest.mark.parametrize("out", [".", "../here", "../there/../here"])
def test_the_demo_in_this_folder(demo, tmp_path, out):
    assert demo(out) == (str(tmp_path / "here-data"), str(tmp_path / "here"))
    assert demo(out) == (str(tmp_path / "here-data"), str(tmp_path / "here")), "the data are taken up"


def test_the_demo_leaves_what_others_have_made_as_it_is(demo, tmp_path):
    (tmp_path / "here" / "thesis.txt").write_text("mine")
    assert "not one of penchant's" in demo(".")
    assert "not one of penchant's" in demo("/")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "thesis.txt"]
    (tmp_path / "new-data").mkdir()
    (tmp_path / "new-data" / "thesis.txt").write_text("mine")
    assert "not empty" in demo("../new")
    assert "not to a URI" in demo("s3://bucket/demo")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "new-data", "thesis.txt", "thesis.txt"]
