"""What a busy replica says of its health."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from penchant.runtime.serving import turn
from penchant.runtime.serving.application import ScorerReplica
from penchant.runtime.serving.turn import Turn


def test_a_busy_replica_is_alive_until_a_pass_hangs(monkeypatch):
    checks, ended = [], threading.Event()

    async def life():
        replica = object.__new__(ScorerReplica)
        replica.engine, replica._turn = SimpleNamespace(check=lambda: checks.append("asked")), Turn()
        await replica.check_health()
        assert checks == ["asked"]
        work = [asyncio.create_task(replica._turn.run(ended.wait, 10)) for _ in range(3)]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(1):
            await replica.check_health()
        monkeypatch.setattr(turn, "_PATIENCE", 0.0)
        with pytest.raises(RuntimeError, match="takes over"):
            await replica.check_health()
        ended.set()
        assert await asyncio.gather(*work) == [True] * 3
        await replica.check_health()

    asyncio.run(life())
    assert checks == ["asked"] * 2
