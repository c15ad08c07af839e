import pytest

from penchant.artifacts import read_json, write_json
from penchant.config import load_settings
from penchant.errors import OutputError, StorageError
from penchant.runtime.training.config import FitSettings
from penchant.runtime.training.progress import ProgressLog
from penchant.runtime.training.run_folder import RunFolder
from penchant.storage import adding_to, join, remove, sizes, upload


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
    with pytest.raises(OutputError, match="not one of penchant's"):
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


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """From a name to a machine with a cache of its own, on which the test goes on."""
    return lambda name: monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / name))


def test_a_remote_run_is_taken_up_on_another_machine(bucket, machine):
    uri = f"{bucket}/runs/fit"
    machine("first")
    run = RunFolder(uri, "data", settings())
    ProgressLog(run.log("graph")).write(done=1, total=2)
    write_json(run.stage("graph") / "graph.json", {"chosen": "text"})
    run.mark_done("graph", ["a"])
    run.add("progress")
    assert run.location("graph") == f"{uri}/graph"
    machine("second")
    again = RunFolder(uri, "data", settings())
    assert again.path != run.path
    assert again.id == run.id
    assert ProgressLog(again.log("graph")).read() == [{"done": 1, "total": 2}]
    assert not again.is_done("graph", ["b"])
    assert again.is_done("graph", ["a"])
    assert read_json(again.stage("graph") / "graph.json") == {"chosen": "text"}
    write_json(again.stage("graph") / "graph.json", {"chosen": "id"})
    again.mark_done("graph", ["b"])
    machine("first")
    back = RunFolder(uri, "data", settings())
    assert back.is_done("graph", ["b"]), "what the other machine made took the place of what lay here"
    assert read_json(back.stage("graph") / "graph.json") == {"chosen": "id"}


def test_a_remote_run_that_was_removed_starts_over(bucket):
    uri = f"{bucket}/runs/fit"
    run = RunFolder(uri, "data", settings())
    run.stage("graph").mkdir()
    run.mark_done("graph", ["a"])
    remove(uri)
    again = RunFolder(uri, "data", settings())
    assert again.id != run.id
    assert not again.is_done("graph", ["a"])


def test_another_remote_run_is_refused(bucket, tmp_path):
    RunFolder(f"{bucket}/run", "data", settings())
    with pytest.raises(OutputError, match="another data set") as raised:
        RunFolder(f"{bucket}/run", "other", settings())
    assert f"{bucket}/run" in str(raised.value)
    (tmp_path / "thesis.txt").write_text("mine")
    upload(tmp_path / "thesis.txt", f"{bucket}/elsewhere/thesis.txt")
    with pytest.raises(OutputError, match="not one of penchant's"):
        RunFolder(f"{bucket}/elsewhere", "data", settings())
    with pytest.raises(StorageError, match="no such bucket"):
        RunFolder("s3://nobody-made-this/run", "data", settings())


def test_what_workers_leave_becomes_a_folder_of_the_run(bucket):
    run = RunFolder(f"{bucket}/run", "data", settings())
    for rank in range(2):
        with adding_to(join(run.results("graph-1", "candidates"), "text")) as part:
            (part / f"users-{rank}").write_text(str(rank))
    run.collect("graph-1", "candidates")
    assert sorted(path.name for path in (run.stage("candidates") / "text").iterdir()) == ["users-0", "users-1"]
    assert not [name for name in sizes(run.uri) if name.startswith("work/")]
