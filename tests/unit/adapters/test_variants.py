import pytest

from penchant.adapters.config import LampSettings, TaskBaseSettings
from penchant.adapters.tasks.config import PromptSettings
from penchant.adapters.variants import check_answers, find_variant, format_study, kinds_study, shift_study, table_rows
from penchant.data.lamp import find_task
from penchant.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "retrieved", "profile", "own"),
    [
        ("base", 0, "none", False),
        ("rag-4", 4, "none", False),
        ("pag", 0, "template", False),
        ("pag-written", 0, "written", False),
        ("oppu", 0, "none", True),
        ("oppu+rag-1", 1, "none", True),
        ("oppu+pag", 0, "template", True),
    ],
)
def test_a_name_says_what_is_shown_and_whether_adapters_take_part(name, retrieved, profile, own):
    row = find_variant(name, LampSettings(prompts=PromptSettings(retrieved=7, retriever="dense")))
    assert (row.prompts.retrieved, row.prompts.profile, row.adapter is not None) == (retrieved, profile, own)
    assert row.prompts.retriever == "dense"


@pytest.mark.parametrize(
    "name", ["", "rag", "rag-0", "base+rag-1", "oppu+", "+rag-1", "opu", "oppu rag-1", "oppurag-1", "oppupag", "baseoppu"]
)
def test_another_name_is_refused(name):
    with pytest.raises(ConfigError, match="There is no variant"):
        find_variant(name, LampSettings())


def test_the_task_base_is_in_every_table_once():
    assert [row.name for row in table_rows(["oppu", "base", "oppu"], LampSettings())] == ["base", "oppu"]


def test_what_is_fitted_apart_lies_apart(planted_tasks):
    settings = LampSettings()
    rows = [*kinds_study(settings), *shift_study(settings), *format_study(settings, planted_tasks["LaMP_3"], 2)]
    folders = {(row.prompts.name, row.adapter.kind, row.history): row.folder for row in rows if row.adapter}
    assert len(set(folders.values())) == len(folders)
    assert {row.prompts.history_fields for row in rows if row.name.startswith("rag")} == {None, ("text",), ("score",)}


def test_a_format_study_wants_items_with_two_fields(planted_tasks):
    with pytest.raises(ConfigError, match="there is one format"):
        format_study(LampSettings(), planted_tasks["LaMP_7"], 1)


def test_a_base_has_to_be_able_to_answer():
    label, text = LampSettings(), LampSettings(base=TaskBaseSettings(answers="text"))
    oppu = table_rows(["oppu"], label)
    assert check_answers(find_task("3"), label, oppu).base.labels == ("1", "2", "3", "4", "5")
    assert check_answers(find_task("4"), text, oppu) is text
    with pytest.raises(ConfigError, match="asks for a text"):
        check_answers(find_task("4"), label, oppu)
    with pytest.raises(ConfigError, match="hold no label"):
        check_answers(find_task("1"), label, oppu)
    with pytest.raises(ConfigError, match="writes no profiles"):
        check_answers(find_task("3"), label, table_rows(["pag-written"], label))
    assert check_answers(find_task("1"), label, table_rows(["rag-1"], label)).base.labels == ("[1]", "[2]")
