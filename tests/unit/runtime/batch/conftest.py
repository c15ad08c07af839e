"""Batch work in this process: the same code without Ray."""

import pytest

from penchant.runtime.batch import onboarding, scoring
from penchant.runtime.batch.pool import Pool


class InProcess:
    """Stands for the pool: works parts off one by one, and can be told to fail after so many."""

    def __init__(self):
        self.parts, self.limit, self.workers = 0, None, 0

    def work_off(self, parts, worker, arguments, pool):
        made, self.workers = worker(**arguments), self.workers + 1
        for part in parts:
            if self.limit is not None and self.parts >= self.limit:
                raise KeyboardInterrupt
            self.parts += 1
            yield made(part)


@pytest.fixture
def in_process(monkeypatch):
    pool = InProcess()
    for module in (scoring, onboarding):
        monkeypatch.setattr(module, "start_ray", lambda address: None)
        monkeypatch.setattr(module, "choose_pool", lambda settings, console: Pool(1, 1, False))
        monkeypatch.setattr(module, "work_off", pool.work_off)
    return pool
