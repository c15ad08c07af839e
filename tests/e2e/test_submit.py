"""`penchant submit` to a Ray cluster of this test's own: batch scoring, a mistake, and the same job submitted again."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penchant.scoring.model import PersonalisedRewardModel

pytestmark = [pytest.mark.e2e, pytest.mark.cluster, pytest.mark.slow]


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def address():
    port, dashboard, client, agent = free_ports(4)
    # Sockets lie there, and their paths may have 107 characters.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats",
               "--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}",
               f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]  # fmt: skip
    with open(f"{folder}/said.txt", "w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    url, deadline = f"http://127.0.0.1:{dashboard}", time.monotonic() + 90
    try:
        while True:
            assert process.poll() is None, Path(folder, "said.txt").read_text()
            assert time.monotonic() < deadline, "the dashboard did not answer"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/api/jobs/", timeout=5).close()
                break
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def submit(*arguments):
    command = [sys.executable, "-m", "penchant.cli", "submit", *map(str, arguments)]
    # RAY_ADDRESS of somebody else's cluster must not win over --address.
    environment = os.environ | {"COLUMNS": "200", "RAY_ADDRESS": "127.0.0.1:1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_scoring_as_a_job(address, bundle, planted, tmp_path):
    dataset, _ = planted
    data, out = tmp_path / "rows", tmp_path / "scores"
    data.mkdir()
    for number in range(2):
        at = range(10 * number, 10 * number + 10)
        columns = {
            "user_id": [str(dataset.user_ids[row % 4]) for row in at],
            "prompt": [dataset.prompts[dataset.prompt_of_response[row]] for row in at],
            "response": [dataset.responses[row] for row in at],
        }
        pq.write_table(pa.table(columns), data / f"{number}.parquet")
    job = tmp_path / "job.yaml"
    job.write_text(f"job: score\nbundle: {bundle[0]}\ndata: {data}\nout: {out}\nbatch: {{rows_per_part: 6}}\n")

    good = pq.read_table(data / "1.parquet")
    bad = good.to_pylist()
    bad[3]["response"] = " "
    pq.write_table(pa.Table.from_pylist(bad), data / "1.parquet")
    failed = submit(job, "--address", address)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "1.parquet, row 3: response is blank." in failed.stdout
    assert "Traceback" not in failed.stdout + failed.stderr

    pq.write_table(good, data / "1.parquet")
    left = submit(job, "--address", address, "--no-wait", "--driver-cpus", "1")
    assert left.returncode == 0, left.stdout + left.stderr
    assert re.search(rf"ray job stop --address {address} score-\w+-2$", left.stdout.strip())
    followed = submit(job, "--address", address)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "-2 is at work already: following it" in followed.stdout
    assert "20 rows of 2 files scored" in followed.stdout
    model = PersonalisedRewardModel.load(bundle[0])
    for row in pq.read_table(out / "1.parquet").to_pylist():
        alone = model.score(row["user_id"], row["prompt"], [row["response"]])
        assert (row["score"], row["personalisation"]) == (pytest.approx(alone.score[0], abs=5e-3), "seen")
