from pathlib import Path

import pytest
import yaml

from penchant.config import dump_settings, load_settings
from penchant.errors import ConfigError
from penchant.runtime.training.config import FitSettings
from penchant.runtime.tuning.candidates import (
    Check,
    base_settings,
    best_settings,
    most_steps,
    stage_of,
    starting_point,
    trial_settings,
)
from penchant.runtime.tuning.space import load_space

SPACES = sorted((Path(__file__).parents[4] / "tune").glob("*.yaml"))
DEPTH = "graph.candidates.*.encoder.num_layers"


def write(tmp_path, **values):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({"stage": "reward", "parameters": {"experts.r": {"choice": [2, 4]}}} | values))
    return str(path)


def space_of(tmp_path, **values):
    return load_space(write(tmp_path, **values))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_shipped_spaces_can_be_swept(path):
    space = load_space(str(path))
    base = base_settings(space, None, [], where=str(path))
    assert trial_settings(space, base, {}).experts.valid_prompts > 0
    first = starting_point(space, base)
    assert first is not None, "the search starts from the default"
    assert best_settings(base, first) == base


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            {"experts.num_expert": {"choice": [1]}},
            r"There is no setting 'experts.num_expert'. Did you mean 'experts.num_experts'",
        ),
        ({"expert.r": {"choice": [1]}}, "Did you mean 'experts.r'"),
        ({"graph.candidates.*.encoder.depth": {"integer": [1, 2]}}, "no setting 'graph.candidates.*.encoder.depth'.* Known here"),
        ({"graph.candidates.text.encoder": {"choice": ["copl"]}}, "is a group of settings"),
        ({"graph.candidates": {"choice": ["text"]}}, "is a group of settings"),
        ({"experts.r.x": {"choice": [1]}}, "'experts.r' has nothing in it"),
        ({"experts.r": {"uniform": [1, 5]}}, "experts.r: Input should be a valid integer"),
        ({"experts.r": {"choice": [4, 0]}}, r"experts.r: Input should be greater than or equal to 1 \(got 0\)"),
        ({"experts.gate_scope": {"choice": ["model", "layers"]}}, "experts.gate_scope: .*got 'layers'"),
        ({"experts.r": {"choice": [1], "integer": [1, 2]}}, "give one of choice"),
        ({"experts.r": {"integer": [3, 3]}}, "integer goes from 3 to 3"),
        ({"experts.learning_rate": {"log_uniform": [0, 1]}}, "starts above 0"),
        ({"backbone.max_tokens": {"choice": [64]}}, "cannot be searched with stage: reward"),
        ({}, "parameters"),
    ],
)
def test_a_mistake_in_a_space_is_named(tmp_path, parameters, said):
    with pytest.raises(ConfigError, match=said) as raised:
        space_of(tmp_path, parameters=parameters)
    assert "space.yaml" in str(raised.value)


def test_the_graph_stage_does_not_search_experts(tmp_path):
    with pytest.raises(ConfigError, match="cannot be searched with stage: graph"):
        space_of(tmp_path, stage="graph")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"settings": {"experts": {"ranks": 3}}}, "no setting 'experts.ranks'"),
        ({"trial": {"experts": {"stepz": 3}}}, "Did you mean 'steps'"),
        ({"parameters": {"experts.steps": {"choice": [4, 8]}}}, "what ASHA decides on"),
        ({"parameters": {"experts.num_experts": {"integer": [0, 2]}}}, "different validation comparisons"),
        ({"asha": {"steps": 4, "first": 8}}, "The first rung, at 8 steps, is beyond"),
        ({"stage": "graph", "parameters": {DEPTH: {"choice": [1]}}}, "trains one encoder, and there are text, id\\+text"),
    ],
)
def test_a_space_that_does_not_fit_the_settings_is_refused(tmp_path, values, said):
    space = space_of(tmp_path, **values)
    with pytest.raises(ConfigError, match=said) as raised:
        base_settings(space, None, [], where="space.yaml")
    assert "space.yaml" in str(raised.value)


def test_what_wins_over_what(tmp_path):
    config = tmp_path / "base.yaml"
    config.write_text(dump_settings(load_settings(FitSettings, None, ["reward.steps=10", "experts.r=2", "experts.steps=50"])))
    space = space_of(
        tmp_path,
        settings={"reward": {"steps": 20}, "graph": {"candidates": {"own": {}}}},
        trial={"reward": {"steps": 30}},
        parameters={DEPTH: {"choice": [1, 3]}},
    )
    base = base_settings(space, config, ["experts.alpha=3"], where="space.yaml")
    assert (base.reward.steps, base.experts.r, base.experts.alpha) == (20, 2, 3.0)
    assert list(base.graph.candidates) == ["own"], "candidates are replaced, not mixed with the file's"
    trial = trial_settings(space, base, {DEPTH: 3})
    assert trial.reward.steps == 30
    assert trial.experts.steps == most_steps(space, base) == 50
    assert trial.graph.candidates["own"].encoder.num_layers == 3
    best = best_settings(base, {DEPTH: 3})
    assert (best.reward.steps, best.graph.candidates["own"].encoder.num_layers) == (20, 3)


def test_a_star_reaches_every_candidate_and_the_best_can_be_fitted(tmp_path):
    space = space_of(tmp_path, parameters={DEPTH: {"choice": [1, 3]}, "experts.r": {"integer": [2, 4]}}, asha={"steps": 24})
    base = base_settings(space, None, [], where="space.yaml")
    trial = trial_settings(space, base, {DEPTH: 3, "experts.r": 2})
    assert {candidate.encoder.num_layers for candidate in trial.graph.candidates.values()} == {3}
    assert (trial.experts.steps, trial.experts.r) == (24, 2)
    best = best_settings(base, {DEPTH: 3, "experts.r": 2})
    (tmp_path / "best.yaml").write_text(dump_settings(best))
    again = load_settings(FitSettings, tmp_path / "best.yaml")
    assert again == best
    assert again.experts.steps == base.experts.steps, "a trial's budget is not the fit's"
    assert starting_point(space, base) is None, "the default depth is not in this space"


def test_the_stage_that_a_trial_ends_with(tmp_path):
    space = space_of(tmp_path, parameters={"experts.num_experts": {"choice": [1, 2]}})
    assert stage_of(space, load_settings(FitSettings, None, ["experts.num_experts=0"])) == "experts"
    frozen = space_of(tmp_path, parameters={"reward.learning_rate": {"uniform": [0.001, 0.01]}})
    assert stage_of(frozen, load_settings(FitSettings, None, ["experts.num_experts=0"])) == "reward"


def test_what_cannot_be_is_said_before_it_runs(tmp_path, tiny_backbone):
    keys = ("experts.num_experts", "experts.top_k", DEPTH)
    space = space_of(tmp_path, parameters={key: {"integer": [1, 9]} for key in keys} | {DEPTH: {"integer": [0, 3]}})
    base = base_settings(space, None, [f"backbone.name={tiny_backbone}"], where="space.yaml")
    check = Check(space, base, num_users=8)
    assert check(dict(zip(keys, (4, 2, 1), strict=True))) is None
    assert "top_k is 4, of 2 experts" in check(dict(zip(keys, (2, 4, 1), strict=True)))
    assert "9 experts are more than the 8 seen users" in check(dict(zip(keys, (9, 1, 1), strict=True)))
    assert "needs at least one layer" in check(dict(zip(keys, (4, 2, 0), strict=True)))


def test_a_method_of_settings_is_what_a_sweep_starts_from(tmp_path):
    space = space_of(tmp_path)
    for given in ({"settings": {"method": "copl"}}, {"trial": {"method": "copl"}}):
        with pytest.raises(ConfigError, match="method: copl"):
            base_settings(space.model_copy(update=given), None, [], where="space.yaml")
    with pytest.raises(ConfigError, match="method: copl"):
        base_settings(space, None, ["method=copl"], where="space.yaml")
    config = tmp_path / "base.yaml"
    config.write_text("method: copl\nexperts: {warmup_ratio: 0.1}\n")
    base = base_settings(space, config, [], where="space.yaml")
    assert (base.experts.gate_scope, base.experts.lr_scheduler_type, base.experts.warmup_ratio) == ("layer", "cosine", 0.1)


def test_a_graph_that_is_trained_by_epochs_wants_the_steps_that_asha_counts(tmp_path):
    config = tmp_path / "base.yaml"
    config.write_text("method: copl\n")
    parameters = {DEPTH: {"choice": [2, 4]}}
    with pytest.raises(ConfigError, match=r"asha\.steps: .*trained by epochs"):
        base_settings(space_of(tmp_path, stage="graph", parameters=parameters), config, [], where="space.yaml")
    space = space_of(tmp_path, stage="graph", parameters=parameters, asha={"steps": 1600})
    assert most_steps(space, base_settings(space, config, [], where="space.yaml")) == 1600
