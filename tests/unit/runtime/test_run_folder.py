import pytest

from penchant.config import load_settings
from penchant.errors import OutputError
from penchant.runtime.training.config import FitSettings
from penchant.runtime.training.progress import ProgressLog
from penchant.runtime.training.run_folder import RunFolder


def settings(*overrides):
    return load_settings(FitSettings, overrides=overrides)


def test_same_run_is_taken_up_and_another_is_refused(tmp_path):
    out = tmp_path / "out"
    RunFolder(out, "data", settings())
    RunFolder(out, "data", settings("workers.num_workers=2"))  # who does the work does not make it another run
    with pytest.raises(OutputError, match="another data set"):
        RunFolder(out, "other", settings())
    with pytest.raises(OutputError, match="with other settings"):
        RunFolder(out, "data", settings("reward.steps=7"))


def test_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no run of penchant"):
        RunFolder(tmp_path, "data", settings())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_settings_are_left_as_config_takes_them(tmp_path):
    run = RunFolder(tmp_path / "out", "data", settings("graph.seed=3"))
    assert load_settings(FitSettings, run.path / "config.yaml") == settings("graph.seed=3")


def test_stage_is_done_for_the_inputs_it_was_made_from(tmp_path):
    run = RunFolder(tmp_path / "out", "data", settings())
    assert not run.is_done("graph", ["a"])
    run.mark_done("graph", ["a"])
    assert run.is_done("graph", ["a"])
    assert not run.is_done("graph", ["b"])
    assert run.attempt("graph", ["a"]) != run.attempt("graph", ["b"])


def test_progress_skips_a_line_that_is_being_written(tmp_path):
    log = ProgressLog(tmp_path / "progress" / "graph.jsonl")
    assert log.read() == []
    log.write(done=1, total=2)
    with log.path.open("a") as file:
        file.write('{"done": 2, "to')
    assert log.read() == [{"done": 1, "total": 2}]
    log.write(done=3, total=3)
    log.write(done=4, total=4)
    assert [record["done"] for record in log.read()] == [1, 4], "what was cut short spoils its own line alone"
