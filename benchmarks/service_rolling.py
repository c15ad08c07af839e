"""A bundle rolls, a canary, and replicas come and go: all under load.

    python benchmarks/service_rolling.py     # over the bundle of `make demo`, and one of another seed

Clients score all the while. Whatever fails is shown: it should be nothing.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from _report import report
from _service import Service, ask, run_clients

BODY = {"prompt": "Explain tides.", "responses": ["Step one: look up.", "The sea is fond of the moon, dear reader."]}


class Clients:
    """Clients who score without a pause until they are told to stop."""

    def __init__(self, service: Service, clients: int) -> None:
        self._stop = threading.Event()

        def work(connection, number, load):
            count = 0
            while not self._stop.is_set():
                count += 1
                ask(connection, load, "POST", "/v1/score", {"user": f"user-{(number * 977 + count) % 5000}-x", **BODY})

        def run() -> None:
            self.load = run_clients(service, clients, work)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def stop(self):
        self._stop.set()
        self._thread.join()
        return self.load


def penchant(*arguments: str, fails: bool = False) -> None:
    done = subprocess.run([sys.executable, "-m", "penchant.cli", *arguments], capture_output=True, text=True)
    if bool(done.returncode) != fails:
        raise RuntimeError(done.stdout + done.stderr)


def rolled(service: Service, what: str, *arguments: str, fails: bool = False) -> dict:
    clients = Clients(service, 4)
    time.sleep(3)
    started = time.perf_counter()
    penchant("roll", "--address", service.cluster, *arguments, fails=fails)
    seconds = time.perf_counter() - started
    time.sleep(5)
    load = clients.stop()
    last = [bundle for _, bundle in load.bundles[-400:]]
    share = {bundle: last.count(bundle) / len(last) for bundle in sorted(set(last))}
    return {
        "what": what, "seconds": seconds, "requests": len(load.seconds), "not 200": load.failed(), "p99, ms": load.quantile(0.99),
        "who answers in the end": ", ".join(f"{bundle[:12]} {part:.0%}" for bundle, part in share.items()),
    }  # fmt: skip


def autoscaled(bundle: Path, folder: Path) -> list[dict]:
    delays = ("scorer.upscale_delay_s=1", "scorer.downscale_delay_s=20")
    with Service(bundle, folder, "scorer.max_replicas=3", "scorer.target_ongoing_requests=2", *delays) as service:
        seen: list[tuple[float, int]] = []
        started = time.perf_counter()

        def watch(until: int, limit: float) -> float:
            deadline = time.perf_counter() + limit
            while time.perf_counter() < deadline:
                count = len(service.replicas("Scorer"))
                if not seen or seen[-1][1] != count:
                    seen.append((time.perf_counter() - started, count))
                if count == until:
                    return time.perf_counter() - started
                time.sleep(0.5)
            raise AssertionError(f"not {until} replicas after {limit:.0f} s: {seen}")

        watch(1, 10)
        clients = Clients(service, 16)
        watch(3, 180)
        time.sleep(10)
        load = clients.stop()
        watch(1, 180)
    return [
        {
            "what": "16 clients come and go", "seconds": seen[-1][0], "requests": len(load.seconds),
            "not 200": load.failed(), "p99, ms": load.quantile(0.99),
            "who answers in the end": "replicas: " + " -> ".join(f"{count} ({at:.0f} s)" for at, count in seen),
        }
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--data", type=Path, default=Path("runs/demo-data"))
    arguments = parser.parse_args()
    if not (arguments.run / "bundle").exists():
        penchant("demo")
    bundle, other = arguments.run / "bundle", arguments.run.with_name(arguments.run.name + "-other")
    penchant("fit", "--data", str(arguments.data), "--out", str(other), "--experts", "0", "reward.seed=1")
    with tempfile.TemporaryDirectory() as folder:
        with Service(bundle, Path(folder) / "roll") as service:
            corrupt = Path(folder) / "corrupt"
            shutil.copytree(other / "bundle", corrupt)
            largest = max((path for path in corrupt.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
            largest.write_bytes(largest.read_bytes()[:-1] + b"!")
            rows = [
                rolled(service, "nothing happens to it", "--help"),
                rolled(service, "a corrupt bundle is refused", "--bundle", str(corrupt), fails=True),
                rolled(service, "another bundle", "--bundle", str(other / "bundle")),
                rolled(service, "back again", "--bundle", str(bundle)),
                rolled(service, "a canary for 20% of the users", "--bundle", str(other / "bundle"), "--canary", "0.2"),
                rolled(service, "no canary any more", "--end-canary"),
            ]
        rows += autoscaled(bundle, Path(folder) / "scale")
    report("service_rolling", "Rolling and scaling under load", rows)
    assert not any(row["not 200"] for row in rows)


if __name__ == "__main__":
    main()
