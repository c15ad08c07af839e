"""Ten minutes of mixed requests by 20 clients (locust): no 5xx, no lost write, and how much memory grows.

    python benchmarks/service_load.py                # over the bundle of `make demo`
    python benchmarks/service_load.py --minutes 2

Memory is the resident memory of the replicas of API and scorer, in the first and the last tenth of the time.
"""

import csv
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from _report import report
from _service import Service, parser

from penchant.store import UserStore

CLIENTS = 20


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--minutes", type=float, default=10)
    arguments = arguments_of.parse_args()
    if importlib.util.find_spec("locust") is None:
        arguments_of.error("locust is not installed: pip install -e '.[bench]'")
    with tempfile.TemporaryDirectory() as name:
        folder, memory, over = Path(name), [], threading.Event()
        acknowledged = folder / "acknowledged.txt"
        with Service(arguments.bundle, folder, "scorer.max_replicas=1") as service:

            def watch() -> None:
                while not over.wait(2):
                    memory.append(sum(process.memory_info().rss for process in service.replicas("")) / 2**20)

            thread = threading.Thread(target=watch)
            thread.start()
            started = time.perf_counter()
            here = Path(__file__).with_name("_locustfile.py")
            command = [sys.executable, "-m", "locust", "-f", here, "--headless", "--only-summary", "--exit-code-on-error", "0"]
            length = ["-u", CLIENTS, "-r", 5, "-t", f"{int(60 * arguments.minutes)}s"]
            target = ["-H", f"http://127.0.0.1:{service.port}", "--csv", folder / "load"]
            subprocess.run(
                [str(word) for word in (*command, *length, *target)],
                check=True,
                env=os.environ | {"KEY": service.key, "ACKNOWLEDGED": str(acknowledged)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            minutes = (time.perf_counter() - started) / 60
            over.set()
            thread.join()
        store = UserStore.open(service.store)
        stored = [choice.prompt for choice in store.export()]
        store.close()
        written = acknowledged.read_text().splitlines()
        with (folder / "load_stats.csv").open() as file:
            table = list(csv.DictReader(file))
        with (folder / "load_failures.csv").open() as file:
            failures = list(csv.DictReader(file))
    lost, twice = len(set(written) - set(stored)), len(stored) - len(set(stored))
    tenth = max(1, len(memory) // 10)
    first, last = float(np.median(memory[:tenth])), float(np.median(memory[-tenth:]))
    rows = [
        {
            "endpoint": line["Name"], "requests": int(line["Request Count"]), "failed": int(line["Failure Count"]),
            "a second": float(line["Requests/s"]),
            **{f"p{share}, ms": float(line[f"{share}%"]) for share in (50, 95, 99)},
        }
        for line in table
    ]  # fmt: skip
    notes = [
        f"{minutes:.1f} minutes, {CLIENTS} clients; failures: {[(line['Name'], line['Error']) for line in failures] or 'none'}.",
        f"{len(written):,} acknowledged writes: {lost} lost, {twice} stored twice.",
        f"Memory of the replicas: {first:,.0f} MiB in the first tenth, {last:,.0f} MiB in the last ({last / first:.2f}x).",
    ]
    report("service_load", "Mixed requests over HTTP (locust)", rows, notes)
    assert not lost
    assert not twice
    assert not failures


if __name__ == "__main__":
    main()
