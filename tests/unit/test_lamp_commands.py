"""`penchant data lamp`: check and synth."""

import json

import pytest
from typer.testing import CliRunner

from penchant.cli import app
from penchant.errors import ConfigError, DataError


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["data", "lamp", *map(str, arguments)], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_a_planted_task_is_made_and_checked(tmp_path):
    folder = tmp_path / "films"
    made = run("synth", folder, "--task", "movie_tagging", "--users", 4, "--other-users", 5, "--items", 8, "--noise", 0)
    assert "4 target users (32 items, 40 queries), 5 other users (40 items, 50 queries)" in made
    assert "Whoever knows each user's rule reaches accuracy 1.0000" in made
    assert "expected to reach accuracy 1.0000" in made
    checked = run("check", folder, "--task", "LaMP_2M")
    assert "Each target user's commonest answer scores accuracy 0." in checked
    assert checked.endswith("The data can be used.")


def test_texts_to_write_have_no_commonest_answer(tmp_path):
    run("synth", tmp_path / "tweets", "--task", "7", "--users", 1, "--other-users", 1, "--layout", "oppu")
    checked = run("check", tmp_path / "tweets", "--task", "7")
    assert "commonest" not in checked
    assert checked.endswith("The data can be used.")


def test_a_bad_folder_is_told_and_exits_with_2(tmp_path):
    folder = tmp_path / "reviews"
    run("synth", folder, "--task", "3", "--users", 1, "--other-users", 1, "--layout", "oppu")
    users = json.loads((folder / "user_others.json").read_text())
    users[0]["profile"][2]["score"] = "7"
    (folder / "user_others.json").write_text(json.dumps(users))
    checked = run("check", folder, "--task", "3", code=2)
    assert "error user_others.json, row 0: LaMP_3, user 'user-00001': item 2 ('user-00001-2'): field 'score'" in checked
    assert "can be used" not in checked


def test_what_is_wrong_with_the_command_is_told(tmp_path):
    with pytest.raises(ConfigError, match="no LaMP task 'books'"):
        run("check", tmp_path, "--task", "books")
    with pytest.raises(DataError, match="There are no LaMP files"):
        run("check", tmp_path, "--task", "3")
    with pytest.raises(ConfigError, match="layout"):
        run("synth", tmp_path / "new", "--task", "3", "--layout", "parquet")
    assert not (tmp_path / "new").exists()
