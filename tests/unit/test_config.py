import pytest
from pydantic import Field

from penchant.config import Settings, dump_settings, load_settings
from penchant.errors import ConfigError
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
        ("method.kinds=2", "'method.name' is missing. Say which it is: penchant, uniform, "),
        ("method.name=lor", "method.name: there is no 'lor'. Did you mean 'lore'?"),
        ("method.name=nobody", "method.name: there is no 'nobody'. Known here: penchant, uniform, "),
        ("method={name: vpl, latnt: 2}", "Did you mean 'latent'?"),
    ],
)
def test_one_of_several_kinds_is_asked_for_by_its_name(override, said):
    with pytest.raises(ConfigError) as raised:
        load_settings(FitSettings, overrides=[override])
    assert said in str(raised.value)


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
