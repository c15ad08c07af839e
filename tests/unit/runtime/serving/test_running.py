"""What a service takes with it when it stops; Ray is played."""

from types import SimpleNamespace

import pytest

from penchant.runtime import cluster
from penchant.runtime.serving import running


@pytest.mark.parametrize(("alone", "done"), [(True, ["all"]), (False, ["penchant"])])
def test_on_a_cluster_of_others_our_application_alone_is_deleted(monkeypatch, alone, done):
    ended = []
    monkeypatch.setattr(running, "serve", SimpleNamespace(shutdown=lambda: ended.append("all"), delete=ended.append))
    monkeypatch.setattr(running, "ray", SimpleNamespace(shutdown=lambda: None))
    running.RunningService("http://here", "here:1", alone=alone).stop()
    assert ended == done


@pytest.mark.parametrize(("address", "elsewhere", "started"), [(None, None, True), (None, "auto", False), ("auto", None, False)])
def test_a_cluster_that_was_joined_is_not_ours(monkeypatch, address, elsewhere, started):
    if elsewhere is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", elsewhere)
    monkeypatch.setattr(cluster, "os", SimpleNamespace(environ=dict(cluster.os.environ)))
    monkeypatch.setattr(cluster, "ray", SimpleNamespace(is_initialized=lambda: False, init=lambda **_: None))
    assert cluster.start_ray(address) is started
