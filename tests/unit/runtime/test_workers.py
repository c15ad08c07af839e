import socket

import pytest

from penchant.errors import DataError, TrainingError
from penchant.runtime.cluster import start_ray
from penchant.runtime.training.workers import _cause


def test_address_where_nobody_answers_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(TrainingError, match="Nobody answers") as raised:
        start_ray(address)
    assert f"--address {address}" in str(raised.value)


def test_a_workers_mistake_comes_through_rays_wrapping():
    mistake = DataError("It is wrong.", where="here", fix="Mend it.")
    wrapped = RuntimeError("2 workers failed")
    wrapped.worker_failures = {0: RuntimeError("other"), 1: mistake}
    assert _cause(wrapped, "graph") is mistake
    other = _cause(RuntimeError("first line\nlast line"), "graph")
    assert isinstance(other, TrainingError)
    assert "last line" in str(other)
