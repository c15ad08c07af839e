"""Faults amid writes: nothing acknowledged is lost, and nothing is stored twice.

    python benchmarks/service_faults.py                                          # over the bundle of `make demo`

In each run 16 clients write 2,000 choices, each with an `Idempotency-Key`, and a failed one is sent again with the same key, as
the answers say that a client may. When a third is through, the fault comes. At the end the store is read directly.
"""

import collections
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil
from _report import report
from _service import Service, ask, parser, run_clients

from penchant.store import UserStore

WRITES, CLIENTS, USERS = 2000, 16, 200


def each_replica(service: Service, name: str) -> list[psutil.Process]:
    """Of a deployment; a fault that meets nobody is none."""
    processes = service.replicas(name)
    assert processes, f"there is no {name}"
    return processes


def kill_replica(name: str):
    def fault(service: Service) -> None:
        for process in each_replica(service, name):
            process.kill()

    return fault


def hang_scorer(service: Service) -> None:
    """It answers nobody, not even Serve's health check, which replaces it."""
    for process in each_replica(service, "Scorer"):
        process.send_signal(signal.SIGSTOP)


def kill_service(service: Service) -> None:
    service.kill()
    time.sleep(2)
    service.start()


def hide_store(service: Service) -> None:
    """The database's file is away for 10 s."""
    path = Path(service.store.removeprefix("sqlite:///"))
    path.rename(path.with_suffix(".away"))
    time.sleep(10)
    path.with_suffix(".away").rename(path)


def may_be_sent_again(status: int, answer: dict, headers) -> bool:
    """As `penchant.client` does. A 404 or 500 that is not ours comes from the proxy, while the API starts or where it died."""
    return status == 0 or (status in (429, 503) and "Retry-After" in headers) or (status in (404, 500) and "error" not in answer)


def run(name: str, fault, bundle: Path) -> dict:
    with tempfile.TemporaryDirectory() as folder, Service(bundle, Path(folder), "scorer.max_replicas=1") as service:
        acknowledged: set[int] = set()
        failures: collections.Counter = collections.Counter()
        retryable, lock, third = [0], threading.Lock(), threading.Event()

        def write(connection, client, _):
            for number in range(client, WRITES, CLIENTS):
                texts = (f"Prompt {number}: explain it.", f"Step one, {number}.", f"Dear reader, {number}!")
                choice = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
                path = f"/v1/users/user-{number % USERS}-x/comparisons"
                while number not in acknowledged:
                    key = {"Idempotency-Key": f"write-{number}"}
                    # The key of the run lives in the store, so it outlives the service.
                    status, answer, headers = connection.request("POST", path, {"comparisons": [choice]}, **key)
                    with lock:
                        if status == 200:
                            acknowledged.add(number)
                            if len(acknowledged) >= WRITES // 3:
                                third.set()
                            break
                        failures[status] += 1
                        retryable[0] += may_be_sent_again(status, answer, headers)
                    time.sleep(0.2)

        def trouble() -> None:
            third.wait()
            started.append(time.perf_counter())
            fault(service)

        started: list[float] = []
        thread = threading.Thread(target=trouble)
        thread.start()
        load = run_clients(service, CLIENTS, write)
        thread.join()
        after = time.perf_counter()
        status, body, _ = service.connect().request("GET", "/v1/users/user-1-x")
        service.stop()
        store = UserStore.open(service.store)
        stored = collections.Counter(choice.chosen for choice in store.export())
        store.close()
        lost = sum(stored[f"Step one, {number}."] == 0 for number in acknowledged)
        doubled = sum(count > 1 for count in stored.values())
        assert (status, body.get("comparisons")) == (200, WRITES // USERS), (status, body)
        return {
            "fault": name, "acknowledged": len(acknowledged), "lost": lost, "twice": doubled,
            "failed meanwhile": sum(failures.values()), "of which a client may retry": retryable[0],
            "statuses": ", ".join(f"{status or 'no answer'}: {count}" for status, count in sorted(failures.items())) or "-",
            "writes a second": WRITES / load.elapsed, "from fault to the end, s": after - started[0],
        }  # fmt: skip


def strangers(bundle: Path, count: int = 10_000) -> dict:
    """Distinct users, each scored once: what the replicas keep of them."""
    with tempfile.TemporaryDirectory() as folder, Service(bundle, Path(folder), "--haproxy", "scorer.max_replicas=1") as service:

        def score(connection, client, load, first: int = 0):
            for number in range(first + client, first + count, CLIENTS):
                body = {
                    "user": f"stranger-{number}",
                    "prompt": f"Prompt {number % 50}: explain it.",
                    "responses": ["One.", "Two."],
                }
                ask(connection, load, "POST", "/v1/score", body)

        def memory() -> float:
            return sum(process.memory_info().rss for process in service.replicas("")) / 2**20

        # As many others before, so that what is loaded once or fills up to its bound is there.
        run_clients(service, CLIENTS, lambda connection, client, load: score(connection, client, load, first=count))
        before, load = memory(), run_clients(service, CLIENTS, score)
        return {"users": count, "seconds": load.elapsed, "not 200": load.failed(), "MiB before": before, "MiB after": memory()}


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--only", help="Faults whose name has this in it.", default="")
    arguments = arguments_of.parse_args()
    faults = {
        "none": lambda service: None,
        "kill -9 of the Scorer": kill_replica("Scorer"),
        "the Scorer hangs": hang_scorer,
        "kill -9 of the Api": kill_replica("Api"),
        "kill -9 of the whole service": kill_service,
        "the database is away for 10 s": hide_store,
    }
    rows = [run(name, fault, arguments.bundle) for name, fault in faults.items() if arguments.only in name]
    if rows:
        report("service_faults", f"{WRITES:,} choices by {CLIENTS} clients, and a fault in the middle", rows)
    assert not any(row["lost"] or row["twice"] for row in rows)
    assert all(row["failed meanwhile"] == row["of which a client may retry"] for row in rows)
    if arguments.only in "strangers":
        report("service_strangers", "Users whom nobody knows, each scored once", [strangers(arguments.bundle)])


if __name__ == "__main__":
    main()
