"""What brings up a cluster: the files mean what Ray's launcher, KubeRay and docker will read in them, at the tested versions."""

import fnmatch
import re
from pathlib import Path

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from penchant.config import load_settings
from penchant.runtime.training.config import FitSettings

ROOT = Path(__file__).parents[3]
PINNED = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))


@pytest.fixture(scope="module")
def launcher():
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


def manifest(name):
    return yaml.safe_load((ROOT / "kubernetes" / name).read_text())


def cluster_spec(name):
    spec = manifest(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name):
    spec = cluster_spec(name)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_the_launcher_takes_the_file(launcher):
    validate_config(prepare_config(launcher))
    with pytest.raises(Exception, match="node_type"):
        validate_config(prepare_config(launcher | {"available_node_type": {}}))


def test_every_file_has_the_ray_that_the_tests_passed_with(launcher):
    version = PINNED["ray"]
    assert ray.__version__ == version
    assert launcher["docker"]["image"].startswith(f"rayproject/ray:{version}-")
    assert f"ARG RAY={version}\n" in (ROOT / "Dockerfile").read_text()
    for name in ("raycluster.yaml", "rayjob.yaml"):
        assert cluster_spec(name)["rayVersion"] == version


def test_versions_are_those_of_the_constraints(launcher):
    for command in (*launcher["setup_commands"], (ROOT / "Dockerfile").read_text()):
        installs = re.findall(r"pip install.*", command)
        assert installs
        assert all("-c " in install and "constraints.txt" in install for install in installs)


def test_spot_comes_first_and_on_demand_stands_in_for_it(launcher):
    types = launcher["available_node_types"]
    spot, on_demand = types["gpu_spot"], types["gpu_on_demand"]
    assert spot["priority"] > on_demand["priority"]
    market = spot["node_config"].pop("InstanceMarketOptions")
    assert market == {"MarketType": "spot"}
    assert spot["node_config"] == on_demand["node_config"]
    assert spot["resources"] == on_demand["resources"]
    assert types[launcher["head_node_type"]]["resources"] == {"CPU": 0}
    groups = {group["groupName"]: group for group in cluster_spec("raycluster.yaml")["workerGroupSpecs"]}
    assert groups["gpu-spot"]["priority"] > groups["gpu-on-demand"]["priority"]
    assert groups["gpu-spot"]["minReplicas"] == groups["gpu-on-demand"]["minReplicas"] == 0


def test_nobody_gets_in_without_a_token(launcher):
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in launcher[commands] if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start
        assert "dashboard-host=127.0.0.1" in start or "--head" not in start
    assert "/home/ray/.ray/auth_token" in launcher["file_mounts"]
    for name in ("raycluster.yaml", "rayjob.yaml"):
        assert cluster_spec(name)["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_pods_are_unprivileged_and_know_the_bucket(name):
    assert manifest(name)["apiVersion"] == "ray.io/v1"
    for pod in pods(name):
        (container,) = pod["containers"]
        assert container["securityContext"]["runAsNonRoot"]
        assert container["envFrom"] == [{"secretRef": {"name": "penchant"}}]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    workers = pods(name)[1:]
    assert all(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1" for pod in workers)


def test_the_jobs_command_is_one_of_ours():
    words = manifest("rayjob.yaml")["spec"]["entrypoint"].split()
    settings = load_settings(FitSettings, overrides=[word for word in words if re.match(r"[\w.]+=", word)])
    assert words[:2] == ["penchant", "fit"]
    (group,) = cluster_spec("rayjob.yaml")["workerGroupSpecs"]
    assert settings.workers.num_workers == group["maxReplicas"]
    assert settings.workers.use_gpu


def test_the_image_holds_the_library_and_no_data():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert {"platform", "constraints.txt", "pyproject.toml", "README.md"} <= let_in
    assert not any(fnmatch.fnmatch(name, pattern) for name in ("runs", ".git", ".venv", "penchant.env") for pattern in let_in)
    last_user = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)[-1]
    assert last_user not in ("root", "0")
