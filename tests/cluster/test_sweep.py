"""Sweeps through the command line: interrupted and taken up again, with trials that keep failing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from penchant import storage
from penchant.config import load_settings
from penchant.data.planted import PlantedWorld, save_planted
from penchant.runtime.training.config import FitSettings

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
DEPTH, RATE, WIDTH = "graph.candidates.*.encoder.num_layers", "experts.learning_rate", "graph.candidates.*.encoder.dim"
TOO_HIGH = 1e30
SMALL = {
    "backbone": {"max_tokens": 64},
    "graph": {"candidates": {"text": {"optimization": {"max_steps": 10}}}},
    "reward": {"steps": 60},
    "experts": {"num_experts": 2, "layers": 1, "prompts_per_step": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "data"
    save_planted(PlantedWorld(users=60, unseen_users=12, prompts=40, comparisons_per_user=12, seed=3), folder)
    return folder


def command(data, out, space, *more):
    path = out.with_name("space.yaml")
    path.write_text(yaml.safe_dump(space))
    return [sys.executable, "-m", "penchant.cli", "tune", "--data", data, "--out", out, "--space", path, *more]


def start(arguments):
    # Whoever runs the tests in the background of a shell hands down an ignored SIGINT.
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, arguments)), env=os.environ | {"COLUMNS": "200"}, **pipes, **listening)


def journal(out):
    path = out / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.is_file() else []


def test_a_sweep_goes_on_where_it_was_interrupted_and_ends_though_trials_keep_failing(data, tmp_path, tiny_backbone):
    out = tmp_path / "sweep"
    space = {
        "stage": "reward",
        "parameters": {DEPTH: {"choice": [1, 2]}, RATE: {"choice": [0.0005, TOO_HIGH]}, "experts.r": {"choice": [2, 4]}},
        "settings": SMALL,
        "trial": {"experts": {"evaluate_every": 96}},
        # Long enough that there is something left to interrupt when two trials have ended.
        "asha": {"steps": 384, "first": 96, "factor": 2},
        "trials": 9,
    }
    arguments = command(data, out, space, f"backbone.name={tiny_backbone}")
    process = start(arguments)
    deadline = time.monotonic() + 240
    while sum(record["event"] == "completed" for record in journal(out)) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    time.sleep(2.5)  # Tune's state is at most so old
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "resume" in said[1]
    before = journal(out)
    ended = {record["trial"] for record in before if record["event"] == "completed"}
    assert not (out / "sweep.json").exists()

    process = start(arguments)
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, said + errors
    after = journal(out)[len(before) :]
    assert not ended & {record.get("trial") for record in after}, "what had ended was run again"
    found = json.loads((out / "sweep.json").read_text())
    assert found["summary"]["trials"] == 8, "every point of the space once, and no more"
    for trial in found["trials"]:
        if trial["values"][RATE] == TOO_HIGH:
            assert (trial["state"], trial["failures"]) == ("failed", 2)
            assert "The loss of 'personalised' is nan" in trial["reason"]
        else:
            assert trial["state"] in ("finished", "stopped early")
            assert 0 < trial["accuracy"] <= 1
    assert "failed trial" in " ".join(said.split())
    assert sorted(folder.name for folder in (out / "graphs").iterdir() if folder.is_dir()) != []
    assert sum(folder.is_dir() for folder in (out / "graphs").iterdir()) == 2, "one graph a depth"
    assert not (out / "scratch").exists()
    settings = load_settings(FitSettings, out / "best.yaml")
    assert settings.experts.learning_rate == 0.0005
    assert settings.experts.steps == FitSettings().experts.steps, "a fit's budget, not a trial's"

    again = start([*arguments, "tracking.tensorboard=true"])
    said, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert len(journal(out)) == len(before) + len(after), "a sweep that is done is read"
    other = start([*arguments, "reward.steps=61"])
    assert "another space or settings" in other.communicate(timeout=60)[1]
    assert other.returncode == 2


def test_a_sweep_in_a_bucket_goes_on_on_another_machine(data, bucket, tmp_path, tiny_backbone, monkeypatch):
    out = f"{bucket}/sweep"
    space = {
        "stage": "graph",
        "parameters": {DEPTH: {"choice": [1, 2]}, WIDTH: {"choice": [8, 16, 32]}},
        "settings": {"backbone": {"max_tokens": 64}, "graph": {"candidates": {"swept": {"optimization": {"evaluate_every": 2}}}}},
        "asha": {"steps": 8, "first": 2, "factor": 2},
        "trials": 6,
    }
    arguments = [*command(data, tmp_path / "x", space, f"backbone.name={tiny_backbone}")]
    arguments[arguments.index("--out") + 1] = out

    def shared():
        return [json.loads(line) for line in (storage.read_bytes(f"{out}/journal.jsonl") or b"").splitlines()]

    def ended(records):
        return {record["trial"] for record in records if record["event"] == "completed"}

    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "first"))
    process = start(arguments)
    deadline = time.monotonic() + 240
    while not ended(shared()) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    time.sleep(2.5)  # Tune's state is at most so old
    process.kill()
    process.communicate(timeout=60)
    before = shared()

    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "second"))
    said, errors = start(arguments).communicate(timeout=240)
    assert said, errors
    after = shared()
    assert after[: len(before)] == before
    assert not ended(before) & {record.get("trial") for record in after[len(before) :]}, "what had ended was run again"
    assert len(ended(after)) == 6
    assert json.loads(storage.read_bytes(f"{out}/sweep.json"))["summary"]["trials"] == 6
    assert storage.read_bytes(f"{out}/sweep.html")
    assert "Fit the best" in said


@pytest.mark.timeout(450)
def test_trials_of_several_workers_report_their_looks_and_leave_no_checkpoints(data, tmp_path, tiny_backbone):
    out = tmp_path / "sweep"
    space = {
        "stage": "reward",
        "parameters": {"reward.learning_rate": {"choice": [0.001, 0.003]}},
        "settings": SMALL | {"experts": {"num_experts": 0}},
        "asha": {"steps": 60, "first": 60},
        "max_failures": 0,
        "trials": 2,
    }
    # A checkpoint at every look: what a group reports to Ray Train of one is no look, and would end the whole sweep.
    small = [f"backbone.name={tiny_backbone}", "workers.num_workers=2", "workers.checkpoint_seconds=0.001"]
    small.append("tracking.tensorboard=true")
    said, errors = start(command(data, out, space, *small)).communicate(timeout=400)
    assert (out / "sweep.json").is_file(), said + errors
    found = json.loads((out / "sweep.json").read_text())
    assert [(trial["state"], trial["reason"]) for trial in found["trials"]] == [("finished", "")] * 2
    assert all(0 < trial["accuracy"] <= 1 for trial in found["trials"])
    assert sum(folder.is_dir() for folder in (out / "graphs").iterdir()) == 1
    assert not (out / "checkpoints").exists()
    assert not (out / "scratch").exists()
    assert len(list((out / "tune").glob("*/events.out.tfevents.*"))) == 2, "one for each trial"
