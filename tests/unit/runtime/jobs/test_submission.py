"""Submission against a cluster that is played: what is shipped, what is attached to, what is said."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from ray.job_submission import JobStatus

from penchant.config import load_settings
from penchant.errors import ConfigError, OutputError, TrainingError
from penchant.runtime.jobs import submission
from penchant.runtime.jobs.settings import FitGraphJob, ScoreJob, SweepJob, load_job
from penchant.runtime.jobs.submission import Submission, check_inputs, connect, follow, shipped, submit


class Cluster:
    """Jobs by id, and logs that come in pieces; `None` among them is a connection that breaks."""

    def __init__(self):
        self.jobs, self.files, self.pieces, self.hidden = {}, [], [], set()

    def list_jobs(self):
        return [job for name, job in self.jobs.items() if name not in self.hidden]

    def submit_job(self, *, entrypoint, submission_id, runtime_env, metadata, entrypoint_num_cpus):
        if submission_id in self.jobs:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        folder = Path(runtime_env["working_dir"])
        self.files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        self.settings = load_job(folder / "job.yaml")
        self.add(submission_id, metadata, entrypoint=entrypoint)
        return submission_id

    def add(self, name, metadata, status=JobStatus.RUNNING, **more):
        values = {"status": status, "driver_exit_code": None, "message": "", "entrypoint": ""} | more
        self.jobs[name] = SimpleNamespace(submission_id=name, metadata=metadata, **values)

    def get_job_info(self, name):
        return self.jobs[name]

    def get_job_logs(self, name):
        return "".join(piece for piece in self.pieces if piece)

    async def tail_job_logs(self, name):
        broken = self.pieces.index(None) if None in self.pieces else None
        for piece in self.pieces[:broken]:
            yield piece
        if broken is not None:
            del self.pieces[broken]
            raise RuntimeError("The connection broke.")
        self.jobs[name].status = self.end[0]
        self.jobs[name].driver_exit_code = self.end[1]


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster()
    monkeypatch.setattr(submission, "connect", lambda address: (made, address or "http://here"))
    monkeypatch.setattr(submission.time, "sleep", lambda seconds: None)
    return made


JOB = ScoreJob(bundle="/b", data="/d", out="/o")


def test_the_library_goes_along_and_nothing_else(cluster):
    submission = submit(JOB)
    assert not submission.attached
    assert submission.id.startswith("score-")
    assert submission.id.endswith("-1")
    assert "job.yaml" in cluster.files
    assert "penchant/runtime/jobs/__main__.py" in cluster.files
    assert "penchant/evaluation/report.html.jinja" in cluster.files
    assert all(name == "job.yaml" or name.startswith("penchant/") for name in cluster.files)
    assert not [name for name in cluster.files if "__pycache__" in name]
    assert cluster.settings == JOB
    assert "-m penchant.runtime.jobs --config job.yaml" in cluster.jobs[submission.id].entrypoint


def test_a_job_at_work_is_followed_and_one_that_ended_is_started_again(cluster):
    first = submit(JOB)
    assert submit(JOB) == Submission(cluster, "http://here", first.id, attached=True)
    cluster.jobs[first.id].status = JobStatus.FAILED
    again = submit(JOB)
    assert not again.attached
    assert again.id == first.id[:-1] + "2"
    assert not submit(ScoreJob(bundle="/b", data="/d", out="/elsewhere")).attached


def test_other_settings_do_not_write_into_a_folder_where_a_job_is_at_work(cluster):
    first = submit(JOB)
    with pytest.raises(OutputError, match=f"{first.id} with other settings is at work") as error:
        submit(ScoreJob(bundle="/b", data="/other", out="/o"))
    assert f"ray job stop --address http://here {first.id}" in str(error.value)


def test_an_edited_file_of_settings_is_another_job(cluster, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("stage: graph\n")
    job = SweepJob(data="/d", space=str(space), out="/o")
    submit(job)
    assert submit(job).attached
    space.write_text("stage: reward\n")
    with pytest.raises(OutputError, match="with other settings is at work"):
        submit(job)


def test_two_who_submit_at_the_same_moment_follow_one_job(cluster):
    first = submit(JOB)
    cluster.hidden.add(first.id)  # it came between the list and the submission
    assert submit(JOB).attached
    cluster.jobs[first.id].status = JobStatus.SUCCEEDED  # or it is an old one that the cluster does not list any more
    assert submit(JOB).id == first.id[:-1] + "2"


@pytest.mark.parametrize(
    ("end", "code"),
    [((JobStatus.SUCCEEDED, 0), 0), ((JobStatus.FAILED, 2), 2), ((JobStatus.STOPPED, None), 143), ((JobStatus.FAILED, None), 1)],
)
def test_the_log_is_passed_on_once_and_the_exit_code_is_the_jobs(cluster, end, code):
    cluster.add("x", {})
    cluster.pieces, cluster.end = ["one\n", None, "two\n", "three\n"], end
    written = []
    assert follow(Submission(cluster, "http://here", "x", attached=False), written.append) == code
    assert "".join(written).startswith("one\ntwo\nthree\n")
    assert "".join(written).count("one") == 1


def test_a_cluster_that_is_gone_is_told(cluster, monkeypatch):
    cluster.add("x", {})
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(submission.time, "monotonic", lambda: next(clock))
    cluster.pieces = [None] * 10
    with pytest.raises(TrainingError, match="does not answer any more"):
        follow(Submission(cluster, "http://here", "x", attached=False), lambda text: None)


def test_a_connection_that_drops_every_hour_is_no_cluster_that_is_gone(cluster, monkeypatch):
    cluster.add("x", {})
    clock = iter(range(0, 1_000_000, 3600))
    monkeypatch.setattr(submission.time, "monotonic", lambda: next(clock))
    cluster.pieces, cluster.end = ["one\n", None, "two\n", None, None, "three\n"], (JobStatus.SUCCEEDED, 0)
    written = []
    assert follow(Submission(cluster, "http://here", "x", attached=False), written.append) == 0
    assert "".join(written) == "one\ntwo\nthree\n"


def test_a_cluster_that_is_gone_after_it_has_answered_is_told(cluster, monkeypatch):
    cluster.add("x", {})
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(submission.time, "monotonic", lambda: next(clock))
    tails = iter([["one\n", None]])

    async def tail(name):
        for piece in next(tails, [None]):
            if piece is None:
                raise RuntimeError("The connection broke.")
            yield piece

    monkeypatch.setattr(cluster, "tail_job_logs", tail)
    with pytest.raises(TrainingError, match="does not answer any more"):
        follow(Submission(cluster, "http://here", "x", attached=False), lambda text: None)


def test_a_job_knows_which_cores_its_own_process_holds(cluster):
    assert "driver_cpus" not in cluster.jobs[submit(JOB).id].metadata
    other = submit(JOB.model_copy(update={"out": "/elsewhere"}), driver_cpus=1.5)
    assert cluster.jobs[other.id].metadata["driver_cpus"] == "1.5"


def test_no_cluster_is_told_with_what_to_do(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        with pytest.raises(TrainingError, match="ray start --head") as error:
            connect(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert "python jobs/" in str(error.value)


def test_a_proxy_of_the_environment_is_not_asked_for_a_dashboard_on_this_machine(monkeypatch):
    asked = []

    class Client:
        def __init__(self, address):
            asked.append(requests.utils.select_proxy(address, requests.utils.get_environ_proxies(address)))

        def list_jobs(self):
            return []

    monkeypatch.setattr(submission, "JobSubmissionClient", Client)
    monkeypatch.setattr(submission, "show_token", lambda host: None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")
    monkeypatch.setenv("no_proxy", "other.test")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as there:
        connect(f"http://127.0.0.1:{there.getsockname()[1]}")
    assert asked == [None]
    assert os.environ["no_proxy"] == "other.test,127.0.0.1"


def test_inputs_that_are_not_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    assert check_inputs(ScoreJob(bundle="s3://b/x", data="rows")) == []
    assert check_inputs(ScoreJob(bundle="/on/the/cluster", data="rows")) == ["/on/the/cluster"]
    with pytest.raises(ConfigError, match="data=rowz: There is no such file"):
        check_inputs(FitGraphJob(data="rowz"))


def test_a_stray_file_in_the_library_is_not_shipped_unnoticed(tmp_path, monkeypatch):
    (tmp_path / "penchant").mkdir()
    (tmp_path / "penchant" / "weights.bin").write_bytes(b"0" * 100)
    monkeypatch.setattr(submission.penchant, "__file__", str(tmp_path / "penchant" / "__init__.py"))
    monkeypatch.setattr(submission, "MOST_BYTES", 50)
    with pytest.raises(OutputError, match=r"weights\.bin"), shipped(JOB):
        pass


def test_a_file_of_settings_goes_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graph.yaml").write_text("stage: graph\n")
    job = SweepJob(data="/d", space="graph.yaml")
    assert check_inputs(job) == ["/d"]
    with shipped(job.located()) as folder:
        sent = load_settings(SweepJob, folder / "job.yaml")
        assert (folder / sent.space).read_text() == "stage: graph\n"
        assert (sent.data, sent.out) == ("/d", f"{tmp_path}/runs/sweep")
    with pytest.raises(ConfigError, match=r"config=no\.yaml"):
        check_inputs(SweepJob(data="/d", space="graph.yaml", config="no.yaml"))
