"""The command line as a stranger would use it: a whole fit on a tiny planted world with two Ray workers, and mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from penchant.data.planted import PlantedWorld, save_planted

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]
SMALL = (
    "backbone.max_tokens=64", "workers.num_workers=2", "workers.threads=1", "reward.steps=150", "evaluation.resamples=50",
    "graph.candidates={text: {optimization: {max_steps: 30}}}",
    "experts.num_experts=3", "experts.layers=1", "experts.steps=8", "experts.prompts_per_step=2", "experts.evaluate_every=4",
)  # fmt: skip


def penchant(*arguments, timeout=280):
    command = [sys.executable, "-m", "penchant.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ | {"COLUMNS": "200"})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "data"
    save_planted(PlantedWorld(users=60, unseen_users=12, prompts=40, comparisons_per_user=12, seed=3), folder)
    return folder


@pytest.fixture(scope="module")
def run(data, tiny_backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "fit"
    result = penchant("fit", "--data", data, "--out", out, f"backbone.name={tiny_backbone}", *SMALL)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


def test_fit_leaves_what_the_readme_says(run):
    metrics = json.loads((run / "metrics.json").read_text())
    for method in ("uniform", "frozen", "personalised", "oracle", "wrong_user"):
        for cohort in ("seen", "unseen"):
            assert set(metrics["accuracy"][method][cohort]["all"]) == {"value", "low", "high", "n"}
    assert metrics["graph"]["valid_accuracy"] > 0
    assert {point["comparisons"] for point in metrics["onboarding"]["curve"]} == {0, 1, 2, 4, 8, 16}
    assert metrics["experts"]["steps"] == 8
    assert sum(metrics["experts"]["load"]["seen"]) == pytest.approx(1)
    assert "personalised-frozen" in metrics["differences"]
    assert (run / "bundle" / "reward" / "experts" / "personalised" / "adapter_model.safetensors").is_file()
    assert "<script src" not in (run / "report.html").read_text()


def test_onboarding_from_nothing_is_uniform(run):
    metrics = json.loads((run / "metrics.json").read_text())
    nothing = metrics["onboarding"]["curve"][0]
    assert nothing["value"] == pytest.approx(metrics["accuracy"]["uniform"]["unseen"]["all"]["value"])


def test_fit_again_reuses_what_is_done(run, data, tiny_backbone):
    before = (run / "graph" / "users.safetensors").stat().st_mtime_ns
    bundle = json.loads((run / "bundle" / "manifest.json").read_text())["name"]
    result = penchant("fit", "--data", data, "--out", run, f"backbone.name={tiny_backbone}", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "Graph stage" not in result.stdout
    assert (run / "graph" / "users.safetensors").stat().st_mtime_ns == before
    assert json.loads((run / "bundle" / "manifest.json").read_text())["name"] == bundle


def test_score_onboard_and_score_again(run, tmp_path):
    score = (
        "score",
        "--bundle",
        run / "bundle",
        "--prompt",
        "Explain tides.",
        "--response",
        "One.",
        "--response",
        "Two!",
        "--json",
    )
    unknown = json.loads(penchant(*score, "--user", "nobody").stdout)
    assert unknown["personalisation"] == "unknown"
    assert unknown["score"] == unknown["uniform"]
    assert json.loads(penchant(*score, "--user", "user-0000").stdout)["personalisation"] == "seen"
    choices = tmp_path / "choices.jsonl"
    choices.write_text(
        json.dumps({"user_id": "nobody", "prompt": "Why?", "chosen": "Ha! A joke.", "rejected": "It is so."}) + "\n"
    )
    made = penchant("onboard", "--bundle", run / "bundle", "--comparisons", choices, "--out", tmp_path / "users.json")
    assert made.returncode == 0, made.stderr
    known = json.loads(penchant(*score, "--user", "nobody", "--onboarded", tmp_path / "users.json").stdout)
    assert known["personalisation"] == "onboarded"
    assert known["score"] != known["uniform"]


def test_bundle_show_and_diff(run, tmp_path):
    assert "as they were written" in penchant("bundle", "show", run / "bundle").stdout
    assert "the same" in penchant("bundle", "diff", run / "bundle", run / "bundle").stdout
    broken = tmp_path / "bundle"
    shutil.copytree(run / "bundle", broken)
    (broken / "reward" / "uniform.safetensors").write_bytes(b"cut short")
    shown = penchant("bundle", "show", broken)
    assert shown.returncode == 2
    assert "not the file that was written" in shown.stderr


def test_bundle_of_a_newer_format_is_refused(run, tmp_path):
    newer = tmp_path / "bundle"
    shutil.copytree(run / "bundle", newer)
    manifest = json.loads((newer / "manifest.json").read_text()) | {"format": 99}
    (newer / "manifest.json").write_text(json.dumps(manifest))
    refused = penchant("score", "--bundle", newer, "--user", "a", "--prompt", "b", "--response", "c")
    assert refused.returncode == 2
    assert "format 99" in refused.stderr
    assert "Upgrade" in refused.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("reward.stepz=5", "Did you mean 'steps'?"),
        ("workers.num_workers=500", "500 workers"),
    ],
)
def test_a_mistake_is_one_paragraph(data, tmp_path, tiny_backbone, override, said):
    result = penchant("fit", "--data", data, "--out", tmp_path / "out", f"backbone.name={tiny_backbone}", override)
    assert result.returncode == 2, result.stdout + result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    if not override.startswith("workers"):
        assert not (tmp_path / "out").exists()


def test_out_folder_of_another_run_is_refused(run, data, tiny_backbone):
    result = penchant("fit", "--data", data, "--out", run, f"backbone.name={tiny_backbone}", "reward.steps=99")
    assert result.returncode == 2
    assert "other settings" in result.stderr


def test_groups_missing_and_no_unseen_users(data, tmp_path, tiny_backbone):
    folder = tmp_path / "plain"
    folder.mkdir()
    users = pq.read_table(data / "users.parquet")
    users = users.filter([cohort == "seen" for cohort in users["cohort"].to_pylist()]).drop_columns(["group"])
    known = set(users["user_id"].to_pylist())
    comparisons = pq.read_table(data / "comparisons.parquet").drop_columns(["controversial"])
    comparisons = comparisons.filter([user in known for user in comparisons["user_id"].to_pylist()])
    pq.write_table(users, folder / "users.parquet")
    pq.write_table(comparisons, folder / "comparisons.parquet")
    shutil.copy(data / "responses.parquet", folder)
    out = tmp_path / "out"
    result = penchant("fit", "--data", folder, "--out", out, "--experts", 0, f"backbone.name={tiny_backbone}", *SMALL)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "there is no oracle" in result.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["accuracy"]) == {"uniform", "personalised", "wrong_user"}
    assert set(metrics["accuracy"]["uniform"]) == {"seen"}


@pytest.mark.slow
def test_interrupted_run_resumes_from_its_checkpoint(data, tmp_path, tiny_backbone):
    out = tmp_path / "out"
    settings = (
        f"backbone.name={tiny_backbone}", "workers.checkpoint_seconds=0.5", "workers.threads=1", "reward.steps=100",
        "evaluation.resamples=20", "graph.candidates={text: {optimization: {max_steps: 4000, patience: 4000}}}",
    )  # fmt: skip
    command = [sys.executable, "-m", "penchant.cli", "fit", "--data", str(data), "--out", str(out), *settings]
    # Whoever runs the tests in the background of a shell hands down an ignored SIGINT.
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **listening)
    deadline = time.monotonic() + 120
    checkpoints = out / "checkpoints"
    while not list(checkpoints.rglob("worker-00000.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "resume" in said
    log = out / "progress" / "graph.jsonl"
    interrupted_at = [json.loads(line)["step"] for line in log.read_text().splitlines() if "step" in line]
    assert interrupted_at[-1] < 4000
    # Killed outright, it is taken up from where that one was.
    before, last = len(interrupted_at), 5
    for number in range(2):
        with (tmp_path / f"said-{number}.txt").open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        deadline, seen = time.monotonic() + 120, set(checkpoints.rglob("worker-00000.json"))
        steps: list[int] = []
        while process.poll() is None and time.monotonic() < deadline:
            lines = log.read_text().splitlines(True)
            steps = [json.loads(line)["step"] for line in lines if "step" in line and line.endswith("\n")]
            if len(steps) > before and set(checkpoints.rglob("worker-00000.json")) - seen:
                break
            time.sleep(0.2)
        process.kill()
        process.wait()
        assert len(steps) > before, (tmp_path / f"said-{number}.txt").read_text()
        assert steps[before] > last, "it started over"
        before, last = len(steps), steps[before]
