import errno
import socket

import pytest

from penchant.config import load_settings
from penchant.errors import ConfigError, DataError, OutputError, TrainingError
from penchant.runtime.cluster import start_ray
from penchant.runtime.training.config import WorkerSettings
from penchant.runtime.training.workers import _cause


@pytest.mark.parametrize("given", [True, False])
def test_address_where_nobody_answers_is_told_at_once(given, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(TrainingError, match="Nobody answers") as raised:
        monkeypatch.setenv("RAY_ADDRESS", address)
        start_ray(address if given else None)
    assert (f"--address {address}" if given else f"RAY_ADDRESS={address}") in str(raised.value)


def test_a_workers_mistake_comes_through_rays_wrapping():
    mistake = DataError("It is wrong.", where="here", fix="Mend it.")
    wrapped = RuntimeError("2 workers failed")
    wrapped.worker_failures = {0: RuntimeError("other"), 1: mistake}
    assert _cause(wrapped, "graph") is mistake
    other = _cause(RuntimeError("first line\nlast line"), "graph")
    assert isinstance(other, TrainingError)
    assert "last line" in str(other)


def test_full_disk_comes_through_rays_wrapping():
    wrapped = RuntimeError("the controller failed")
    wrapped.controller_failure = OSError(errno.ENOSPC, "No space left on device")
    full = _cause(wrapped, "graph")
    assert isinstance(full, OutputError)
    assert "The disk is full" in str(full)
    assert isinstance(_cause(OSError(errno.ECONNRESET, "reset"), "graph"), TrainingError)


def test_fewer_workers_at_least_than_at_most():
    assert load_settings(WorkerSettings, overrides=["min_workers=1", "num_workers=2"]).min_workers == 1
    with pytest.raises(ConfigError, match="min_workers is more than num_workers"):
        load_settings(WorkerSettings, overrides=["min_workers=3", "num_workers=2"])
