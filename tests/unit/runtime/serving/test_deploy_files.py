"""What is deployed from serve/: the files mean what Ray Serve, KubeRay and Grafana will read in them."""

import importlib
import json
import os
import re
from pathlib import Path

import pytest
import yaml
from ray.serve._private import constants
from ray.serve.schema import ServeDeploySchema

from penchant.config import validate_settings
from penchant.errors import ConfigError
from penchant.runtime.serving.application import check_store
from penchant.runtime.serving.chat.events import Ended, Started
from penchant.runtime.serving.config import LimitSettings, ServiceSettings
from penchant.runtime.serving.engine import Batch, ScoreAnswer
from penchant.runtime.serving.environment import prepare_environment
from penchant.runtime.serving.measures import Measures

FOLDER = Path(__file__).parents[4] / "serve"


def rayservice():
    return yaml.safe_load((FOLDER / "rayservice.yaml").read_text())


@pytest.fixture(params=["service.yaml", "rayservice.yaml"])
def deployed(request):
    """What `serve deploy` gets."""
    if request.param == "service.yaml":
        return yaml.safe_load((FOLDER / request.param).read_text())
    return yaml.safe_load(rayservice()["spec"]["serveConfigV2"])


def test_ray_serve_takes_the_file_and_the_settings_are_ours(deployed):
    (application,) = ServeDeploySchema.model_validate(deployed).applications
    module, name = application.import_path.split(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert validate_settings(ServiceSettings, application.args).bundle == application.args["bundle"]


def test_on_one_machine_nobody_else_is_served():
    assert yaml.safe_load((FOLDER / "service.yaml").read_text())["http_options"]["host"] == "127.0.0.1"


def test_on_kubernetes_every_pod_sees_bundles_and_store(monkeypatch):
    service = rayservice()
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert container["envFrom"] == [{"secretRef": {"name": "penchant"}}]
    # The store is not in the file, for its password, but in the environment.
    monkeypatch.setenv("PENCHANT_STORE", "postgresql://somebody@database/penchant")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert validate_settings(ServiceSettings, application["args"]).store == "postgresql://somebody@database/penchant"


def test_what_is_set_in_the_environment_stays(monkeypatch):
    monkeypatch.setattr(os, "environ", {"RAY_worker_niceness": "5"})
    prepare_environment()
    assert os.environ["RAY_worker_niceness"] == "5"  # noqa: SIM112
    assert os.environ["RAY_SERVE_USE_GRPC_BY_DEFAULT"] == "1"
    # As long as a message of all that the onboarding reads of a user, at 4 bytes a character.
    limits = LimitSettings()
    longest = limits.comparisons_per_user * 3 * limits.text_characters * 4
    assert int(os.environ["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"]) > longest
    assert constants.RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH, "Ray reads it under this name"
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ
    prepare_environment(haproxy=True)
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def test_a_store_in_a_file_is_refused_where_replicas_may_run_on_several_nodes():
    check_store("sqlite:///users.db", nodes=1)
    check_store("postgresql://somebody@database/penchant", nodes=3)
    with pytest.raises(ConfigError, match="SQLite is a file on one node, and this cluster has 3"):
        check_store("sqlite:///users.db", nodes=3)


def test_the_dashboard_shows_what_is_counted():
    measures = Measures()
    measures.began()
    measures.ended("/v1/score", 200, 0.01)
    measures.scored(ScoreAnswer("b", "seen", (1.0,), (0.0,), batch=Batch(1, 2, 3)), seconds=0.01)
    measures.onboarded("b", agreed=1, comparisons=1)
    measures.generated(Started("own", "b", "s", prompt_tokens=2), Ended(1.0, 0.1, rows=1, loads=1, evictions=1), 3)
    counted = set(re.findall(r"^(penchant_\w+)", measures.text().decode(), re.M))
    panels = json.loads((FOLDER / "grafana.json").read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in re.findall(r"penchant_\w+", target["expr"])}
    assert asked <= counted
    families = {re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in counted}
    assert families == {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in asked}
