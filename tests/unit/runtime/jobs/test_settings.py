from pathlib import Path

import pytest

from penchant.config import dump_settings
from penchant.errors import ConfigError
from penchant.runtime.jobs.launch import check_job, launch
from penchant.runtime.jobs.settings import JOBS, FitGraphJob, ScoreJob, load_job

ROOT = Path(__file__).parents[4]


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: d", "does not say which job it is"),
        ("job: fit_grahp", "no job 'fit_grahp'"),
        ("job: fit_graph", "'data' is missing"),
        ("job: fit_graph\ndata: d\nreward: {stepz: 1}", "Did you mean 'steps'"),
        ("job: score\nbundle: b\ndata: d\nbatch: {rows_per_part: 0}", "batch.rows_per_part"),
        ("job: score\nbundle: b\ndata: d\nreward: {steps: 1}", "no setting 'reward'"),
        ("- job", "not a mapping"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(write, text, said):
    with pytest.raises(ConfigError, match=said):
        load_job(write(text))


def test_overrides_win_and_a_job_reads_back_what_it_says(write):
    job = load_job(write("job: fit_graph\ndata: d\n"), ["out=o", "graph.seed=7", "workers.num_workers=2"])
    assert isinstance(job, FitGraphJob)
    assert (job.out, job.graph.seed, job.workers.num_workers) == ("o", 7, 2)
    assert load_job(write(dump_settings(job))) == job


def test_places_hold_in_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    job = FitGraphJob.model_validate({"data": "d", "out": "s3://bucket/run", "backbone": {"name": "./base"}}).located()
    assert (job.data, job.out, job.backbone.name) == (f"{tmp_path}/d", "s3://bucket/run", f"{tmp_path}/base")
    score = ScoreJob(bundle="b", data="/abs/d").located()
    assert (score.bundle, score.data, score.onboarded) == (f"{tmp_path}/b", "/abs/d", None)


def test_results_of_a_submitted_job_do_not_go_where_ray_deletes_them(monkeypatch):
    lost = ScoreJob(bundle="b", data="d", out="here")
    check_job(lost, "score", where="x")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="deletes when the job ends"):
        check_job(lost, "score", where="x")
    for out in ("/abs", "s3://bucket/x"):
        check_job(ScoreJob(bundle="b", data="d", out=out), "score", where="x")


def test_a_launcher_takes_its_own_job_alone(capsys):
    with pytest.raises(SystemExit) as stop:
        launch("score", ROOT / "jobs" / "onboard.yaml", [])
    assert stop.value.code == 2
    assert "holds the job 'onboard', not 'score'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("arguments", "code"), [(["out=x", "nope=1"], 2), (["out=x"], 0), (["--config", "no.yaml"], 2)])
def test_exit_codes(arguments, code, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(ScoreJob, "run", lambda self, console: ran.append(self.out))
    with pytest.raises(SystemExit) as stop:
        launch("score", ROOT / "jobs" / "score.yaml", arguments)
    assert stop.value.code == code
    assert ran == (["x"] if code == 0 else [])


def test_every_job_has_a_launcher():
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(JOBS)
