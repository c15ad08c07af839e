import pytest
from pydantic import Field

from penchant.config import Settings, dump_settings, load_settings
from penchant.errors import ConfigError
from penchant.graph.config import default_candidates
from penchant.runtime.serving.config import ServiceSettings
from penchant.runtime.training.config import FitSettings


class Inner(Settings):
    """Inner."""

    rate: float = Field(0.1, gt=0)
    """A rate."""


class Outer(Settings):
    """Outer."""

    inner: Inner = Inner()
    """Inner settings."""
    count: int = 3
    """A count."""


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("count: 5\ninner: {rate: 0.5}\n")
    assert load_settings(Outer, path) == Outer(count=5, inner=Inner(rate=0.5))
    assert load_settings(Outer, path, ["inner.rate=0.7"]).inner.rate == 0.7


def test_what_is_given_is_not_changed():
    values = {"inner": {"rate": 0.5}}
    assert load_settings(Outer, values=values, overrides=["inner.rate=0.7"], given={"count": 4}).inner.rate == 0.7
    assert values == {"inner": {"rate": 0.5}}


def test_dumped_settings_are_read_back(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(dump_settings(FitSettings()))
    assert load_settings(FitSettings, path) == FitSettings()


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("cuont: 5", [], "Did you mean 'count'?"),
        ("inner: {rat: 1}", [], "There is no setting 'inner.rat'"),
        ("count: many", [], "count: "),
        ("inner: {rate: -1}", [], "greater than 0 (got -1)"),
        ("- 1", [], "holds a list"),
        ("count: [", [], "not valid YAML"),
        ("", ["count"], "not an override"),
        ("", ["=3"], "not an override"),
        ("", ["count.deep=3"], "count"),
        ("count: 3", ["count.deep=3"], "is a value, not a group"),
        ("", ["inner.rate=fast"], "inner.rate"),
    ],
)
def test_mistakes_name_the_key(tmp_path, text, overrides, said):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_settings(Outer, path, overrides)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method.kinds=2", "'method.name' is missing. Say which it is: penchant, copl, uniform, "),
        ("method.name=vp", "method.name: there is no 'vp'. Did you mean 'vpl'?"),
        ("method.name=nobody", "method.name: there is no 'nobody'. Known here: penchant, copl, uniform, "),
        ("method={name: vpl, latnt: 2}", "Did you mean 'latent'?"),
    ],
)
def test_one_of_several_kinds_is_asked_for_by_its_name(override, said):
    with pytest.raises(ConfigError) as raised:
        load_settings(FitSettings, overrides=[override])
    assert said in str(raised.value)


def candidates(*overrides, values=None):
    return load_settings(FitSettings, overrides=overrides, values=values).graph.candidates


def test_an_override_of_one_candidate_leaves_the_rest_of_it_and_the_others():
    default = default_candidates()
    deep = candidates("graph.candidates.text.encoder.num_layers=6")
    assert list(deep) == ["text", "id+text"]
    assert (deep["text"].encoder.num_layers, deep["text"].encoder.dim) == (6, 64)
    assert deep["id+text"] == default["id+text"]
    short = candidates("graph.candidates.id+text.optimization.max_steps=20", "graph.seed=3")
    assert (short["id+text"].encoder, short["id+text"].optimization.max_steps) == (default["id+text"].encoder, 20)
    assert short["text"] == default["text"]


def test_candidates_that_are_given_stand_alone_and_overrides_are_laid_over_them():
    values = {"graph": {"candidates": {"own": {"encoder": {"dim": 8}}, "other": {}}}}
    assert list(candidates(values=values)) == ["own", "other"]
    found = candidates("graph.candidates.own.encoder.num_layers=2", values=values)
    sizes = {name: (each.encoder.dim, each.encoder.num_layers) for name, each in found.items()}
    assert sizes == {"own": (8, 2), "other": (64, 4)}
    assert list(candidates("graph.candidates={one: {}}", "graph.candidates.one.encoder.dim=8")) == ["one"]
    added = candidates("graph.candidates.mixture={encoder: {layer: mixture, num_layers: 1}}")
    assert list(added) == ["text", "id+text", "mixture"]


def test_a_star_is_every_candidate():
    found = candidates("graph.candidates.*.optimization.learning_rate=0.001")
    assert [each.encoder for each in found.values()] == [each.encoder for each in default_candidates().values()]
    assert {each.optimization.learning_rate for each in found.values()} == {0.001}
    found = candidates("graph.candidates.*.encoder.dim=16", values={"graph": {"candidates": {"a.b": {}, "c": {}}}})
    assert {name: each.encoder.dim for name, each in found.items()} == {"a.b": 16, "c": 16}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("graph.candidates.txet.encoder.dim=8", "There is no 'txet' in graph.candidates. Did you mean 'text'?"),
        ("graph.candidates.one.encoder.dim=8", "Known here: text, id+text. Or add it whole: graph.candidates.one={...}."),
        ("graph.candidates.*={}", "Name one setting: graph.candidates.*.KEY=VALUE."),
        ("graph.candidates.*.encoder.dimm=8", "There is no setting 'graph.candidates.text.encoder.dimm'"),
        ("reward.*=1", "There is no setting 'reward.*'"),
        ("*.seed=1", "There is no setting '*'"),
    ],
)
def test_what_names_no_candidate_is_refused(override, said):
    with pytest.raises(ConfigError) as raised:
        candidates(override)
    assert said in " ".join(str(raised.value).split())


def test_a_mistake_between_settings_does_not_show_them_all():
    with pytest.raises(ConfigError, match="nothing to serve") as raised:
        load_settings(ServiceSettings, overrides=["store=postgresql://ana:secret@host/db"])
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("path", ["/data/try #2/bundle", "/data/a: b/bundle", "on", ""])
def test_what_an_option_says_is_no_yaml(path):
    settings = load_settings(ServiceSettings, overrides=["bundle=other"], given={"bundle": path, "tenant": None})
    assert (settings.bundle, settings.tenant) == (path, "default")
    generator = {"generator.base": path, "generator.adapters": path}
    assert load_settings(ServiceSettings, given=generator).generator.adapters == path


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_settings(Outer, tmp_path / "nothing.yaml")


def test_every_setting_is_described():
    def undescribed(model, path=""):
        for name, field in model.model_fields.items():
            if not field.description and not (isinstance(field.annotation, type) and issubclass(field.annotation, Settings)):
                yield f"{path}{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                yield from undescribed(field.annotation, f"{path}{name}.")

    assert list(undescribed(FitSettings)) == []


def test_a_preset_lies_beneath_what_is_given_wherever_it_is_named():
    overrides = ["graph.candidates.published.encoder.dim=16", "experts.steps=5", "method=copl"]
    given = load_settings(FitSettings, overrides=overrides)
    assert given.graph.candidates["published"].encoder.dim == 16
    assert (given.experts.steps, given.experts.num_experts, given.onboarding.kind) == (5, 8, "neighbours")
    assert load_settings(FitSettings, values=given.model_dump(mode="json")) == given
    assert load_settings(FitSettings, values={"method": {"name": "copl"}, "experts": {"steps": 5}}).experts == given.experts
    assert FitSettings(method="copl", experts={"steps": 5}).experts == given.experts


def test_candidates_that_are_given_take_the_place_of_a_presets():
    values = {"method": "copl", "graph": {"candidates": {"own": {}}}}
    graph = load_settings(FitSettings, values=values).graph
    assert (list(graph.candidates), graph.folds) == (["own"], 0)
    assert list(load_settings(FitSettings, overrides=["method=copl", "graph.candidates={own: {}}"]).graph.candidates) == ["own"]
    with pytest.raises(ConfigError, match="Did you mean 'published'"):
        load_settings(FitSettings, overrides=["graph.candidates.publishd.encoder.dim=16", "method=copl"])


def test_without_a_preset_nothing_lies_beneath():
    assert load_settings(FitSettings, overrides=["method=penchant"]) == FitSettings()
    assert FitSettings.preset("vpl") == {}
