"""A worker that is killed and a checkpoint that is damaged: the graph stage ends as if nothing had been, and says what was."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray
import torch

from penchant.artifacts import read_json
from penchant.errors import DataError
from penchant.graph.config import GraphSettings
from penchant.runtime.cluster import start_ray
from penchant.runtime.training.config import WorkerSettings
from penchant.runtime.training.graph_stage import graph_loop
from penchant.runtime.training.prepared import prepare
from penchant.runtime.training.progress import ProgressLog
from penchant.runtime.training.workers import run_stage
from penchant.tensors import read_tensors

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
STEPS = 300
GRAPH = GraphSettings.model_validate(
    {
        "candidates": {
            "ids": {
                "encoder": {"dim": 8, "num_layers": 2, "response_init": "id", "user_init": "id"},
                "optimization": {"max_steps": STEPS, "patience": STEPS},
            }
        },
        "folds": 2,
    }
)


@dataclass
class Stage:
    """The graph stage on two workers, in a folder of its own."""

    prepared: Path
    folder: Path

    @property
    def log(self) -> ProgressLog:
        return ProgressLog(self.folder / "progress.jsonl")

    def run(self, loop=graph_loop) -> None:
        config = {"graph": GRAPH.model_dump(mode="json"), "prepared": str(self.prepared)}
        config |= {"log": str(self.log.path), "out": str(self.folder / "candidates")}
        settings = WorkerSettings(num_workers=2, threads=1, checkpoint_seconds=0.5)
        run_stage(loop, config, name="graph", storage=self.folder / "checkpoints", settings=settings)

    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints" / "graph").glob("checkpoint_0*"))

    def steps(self) -> list[int]:
        return [record["step"] for record in self.log.read() if "step" in record]

    def warnings(self) -> list[str]:
        return [record["warning"] for record in self.log.read() if "warning" in record]

    def results(self) -> dict[str, torch.Tensor]:
        files = sorted((self.folder / "candidates" / "ids").glob("*.safetensors"))
        assert len(files) == 6
        return {f"{file.name}/{key}": value for file in files for key, value in read_tensors(file).items()}

    def summary(self) -> dict:
        return {
            key: value
            for key, value in read_json(self.folder / "candidates" / "ids" / "summary.json").items()
            if key != "seconds"
        }


@pytest.fixture(scope="module")
def calm(planted, tmp_path_factory):
    """The stage undisturbed."""
    folder = tmp_path_factory.mktemp("calm")
    prepare(planted[0], folder / "prepared")
    start_ray(num_cpus=2)
    stage = Stage(folder / "prepared", folder)
    stage.run()
    yield stage
    ray.shutdown()


def is_as_if_nothing_had_been(stage: Stage, calm: Stage) -> None:
    assert stage.summary() == calm.summary()
    expected = calm.results()
    for name, value in stage.results().items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-6), name


def test_killed_worker(calm, tmp_path):
    stage = Stage(calm.prepared, tmp_path)

    def kill() -> None:
        while len(stage.checkpoints()) < 2:  # the first is whole then
            time.sleep(0.05)
        workers = [child for child in psutil.Process().children(recursive=True) if "RayTrainWorker" in child.cmdline()[0]]
        workers[-1].kill()
        killed.append(stage.steps()[-1])

    killed: list[int] = []
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    stage.run()
    thread.join()
    assert 0 < killed[0] < STEPS
    is_as_if_nothing_had_been(stage, calm)
    assert "is lost" in stage.warnings()[0]
    records = stage.log.read()
    fault = next(number for number, record in enumerate(records) if "warning" in record)
    again = next(record["step"] for record in records[fault:] if "step" in record)
    assert 5 < again <= killed[0] + 10, "it went back to a checkpoint, and not to the start"


def test_checkpoint_cut_short(calm):
    before, last = calm.checkpoints()
    damaged = last / "worker-00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    stage, expected, records = calm, calm.results(), len(calm.steps())
    stage.run()
    (said,) = stage.warnings()
    assert said == (
        f"{last.name} is not used: worker-00001.safetensors is not what was written. Taken up from {before.name} instead."
    )
    assert 5 < stage.steps()[records] <= STEPS
    for name, value in stage.results().items():
        assert torch.equal(value, expected[name]), name


def wrong_data(config):
    ProgressLog(Path(config["log"])).write(tried=True)
    raise DataError("It is wrong.", where="here", fix="Mend it.")


def test_mistake_is_not_tried_again(calm, tmp_path):
    stage = Stage(calm.prepared, tmp_path)
    with pytest.raises(DataError, match=r"It is wrong\."):
        stage.run(wrong_data)
    assert len(stage.log.read()) <= 2, "once by each worker"
