"""What fits and trials have in common is made once."""

import threading

import pytest

from penchant.runtime.training.shared import SharedResults, shared_folder


def test_the_first_makes_it_and_the_others_wait(tmp_path):
    shared, made, found = SharedResults(tmp_path), [], []
    begun, go_on = threading.Event(), threading.Event()

    def make(folder):
        made.append(folder)
        begun.set()
        assert go_on.wait(10)
        folder.mkdir()
        (folder / "result").write_text("whole")

    def take():
        folder, seconds = shared.take("kind", {"a": 1}, make)
        found.append((folder, (folder / "result").read_text(), seconds))

    threads = [threading.Thread(target=take) for _ in range(2)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert len(set(found)) == 1
    assert found[0][1] == "whole"


def test_other_inputs_and_other_kinds_are_other_results(tmp_path):
    shared = SharedResults(tmp_path)
    folders = [shared.take(kind, inputs, lambda folder: folder.mkdir())[0] for kind, inputs in (("a", 1), ("a", 2), ("b", 1))]
    assert len(set(folders)) == 3
    assert shared.take("a", 1, pytest.fail)[0] == folders[0]


def test_what_was_left_unfinished_is_made_again(tmp_path):
    shared = SharedResults(tmp_path)

    def fail(folder):
        folder.mkdir()
        raise OSError("The disk is full.")

    with pytest.raises(OSError, match="full"):
        shared.take("kind", 1, fail)
    folder, _ = shared.take("kind", 1, lambda folder: (folder / "result").write_text("whole"))
    assert (folder / "result").read_text() == "whole"


def test_a_folder_goes_with_its_maker_and_those_of_the_killed_with_the_next(tmp_path):
    left = tmp_path / ".shared-killed"
    left.mkdir()
    (tmp_path / ".shared-killed.lock").touch()
    with shared_folder(tmp_path) as one:
        assert not left.exists()
        with shared_folder(tmp_path) as other:
            assert one.is_dir()  # its maker lives
            assert other != one
    with pytest.raises(OSError, match="full"), shared_folder(tmp_path):
        raise OSError("The disk is full.")
    assert list(tmp_path.iterdir()) == []
