"""Threads beside the main one: work that must not be on it, and looking again and again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any


def run_beside(work: Callable[[], Any]) -> None:
    """Runs `work` on a thread of its own, and raises what it raised.

    On the main thread Ray takes Ctrl-C over, and ends the process by itself.
    """
    failure: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


@contextlib.contextmanager
def polling(update: Callable[[], None], *, seconds: float) -> Iterator[None]:
    """Calls `update` every so often while the block runs, and once more at its end."""
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(seconds):
            update()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        update()
