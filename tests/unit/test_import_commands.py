"""`penchant data import`: each command reads what it says, and what it made is told."""

import json

import pytest
from typer.testing import CliRunner

from penchant.cli import app
from penchant.errors import ConfigError, DataError

COMMANDS = ("trl", "ultrafeedback", "tldr", "personalllm", "prism", "community-alignment", "hh-rlhf")


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def rated(number):
    ratings = {"a": "5511", "b": "1155"}
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    return {
        "instruction": f"Prompt {number}",
        "completions": [
            {
                "response": f"{name} {number}",
                "annotations": {aspect: {"Rating": value} for aspect, value in zip(aspects, values, strict=True)},
            }
            for name, values in ratings.items()
        ],
    }


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "uf.jsonl"
    path.write_text("".join(json.dumps(rated(number)) + "\n" for number in range(40)))
    return path


def test_a_public_data_set_is_made_and_its_users_are_told(tmp_path, source):
    small = ("--users", 8, "--unseen-users", 4, "--comparisons", 4, "--test-comparisons", 2)
    made = run("import", "ultrafeedback", source, tmp_path / "out", "--protocol", "avg", "--seed", 1, *small)
    assert "12 simulated users on" in made
    protocol = json.loads((tmp_path / "out" / "origin.json").read_text())["protocol"]
    assert (protocol["protocol"], protocol["seed"], protocol["unseen_users"]) == ("avg", 1, 4)
    checked = run("check", tmp_path / "out")
    assert "UltraFeedback, UF-P-4-AVG" in checked
    assert "users are │ simulated" in checked
    assert checked.endswith("The data can be used.")


def test_people_and_a_split(tmp_path):
    rows = []
    for number in range(10):
        history = [{"turn": 0, "role": "user", "content": f"Hello {number}?"}]
        history += [
            {"turn": 0, "role": "model", "content": text, "score": score, "if_chosen": score > 50}
            for text, score in (("A", 9), ("B", 90))
        ]
        rows.append({"conversation_id": f"c{number}", "user_id": f"u{number % 2}", "conversation_history": history})
    path = tmp_path / "conversations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "10 comparisons of 2 users on 20 responses" in run("import", "prism", path, tmp_path / "out")
    run("split", tmp_path / "out", tmp_path / "split")
    assert "users are │ people" in run("check", tmp_path / "split")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_reads_and_who_the_users_are(name):
    said = run("import", name, "--help")
    assert "SIMULATED" in said or name in ("trl", "prism", "community-alignment")
    assert f"penchant data import {name}" in said or name == "trl"


def test_what_is_wrong_with_the_command_is_told(tmp_path, source):
    with pytest.raises(ConfigError, match="protocol"):
        run("import", "ultrafeedback", source, tmp_path / "out", "--protocol", "some")
    with pytest.raises(DataError, match="no such file or folder"):
        run("import", "tldr", tmp_path / "none", tmp_path / "out")
    with pytest.raises(DataError, match="has no objective"):
        run("import", "hh-rlhf", tmp_path, tmp_path / "out", "--folder", "red-team-attempts")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("split", "s3://bucket/raw", "out"),
        ("drop-users", "s3://bucket/raw", "out", "ana"),
        ("import", "trl", "s3://bucket/raw", "out"),
        ("import", "prism", "s3://bucket/raw", "out"),
        ("lamp", "check", "s3://bucket/raw", "--task", "LaMP-2M"),
    ],
)
def test_a_uri_where_a_folder_of_this_machine_is_read_is_told(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^s3://bucket/raw: This is read from this machine, not from a URI"):
        run(*command)
    assert list(tmp_path.iterdir()) == []
