import io

from rich.console import Console

from penchant.runtime import progress


def test_a_log_gets_a_line_now_and_then_and_the_last_word(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    said = io.StringIO()
    with progress.progress_bar(Console(file=said, width=200), "Graph stage") as say:
        for step in range(25):
            clock[0] = float(step)
            say(step, 5_000, "valid [0.6]")
    lines = said.getvalue().splitlines()
    assert lines == [
        "Graph stage: 10 of 5,000, valid [0.6] (10 s)",
        "Graph stage: 20 of 5,000, valid [0.6] (20 s)",
        "Graph stage: 24 of 5,000, valid [0.6] (24 s)",
    ]


def test_nothing_said_nothing_printed():
    said = io.StringIO()
    with progress.progress_bar(Console(file=said), "Graph stage"):
        pass
    assert said.getvalue() == ""


def test_a_terminal_gets_a_bar():
    said = io.StringIO()
    console = Console(file=said, width=100, force_terminal=True)
    with progress.progress_bar(console, "Graph stage") as say:
        say(3, 4, "nearly")
    assert "3/4" in said.getvalue()
    assert "nearly" in said.getvalue()
