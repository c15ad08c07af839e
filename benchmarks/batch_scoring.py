"""Rows scored in a second by the batch job, against the bare model in a loop over the same rows.

    python benchmarks/batch_scoring.py                             # the bundle of `make demo`, which is made if it is not there
    python benchmarks/batch_scoring.py --bundle runs/mine/bundle --rows 16384

Every row has a text of its own, made of the words of the bundle's texts, and nothing is cached: the base reads each. The loop has
its rows in memory; the job reads Parquet, checks it, writes Parquet, and has Ray in between. Both have all cores and no GPU, the
same portions, and (RAY_worker_niceness) the same priority. They take turns in one run. Start-up (workers, the model) is apart.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _report import report
from _service import parser

from penchant.runtime.batch.config import BatchSettings
from penchant.runtime.batch.scoring import score_tables
from penchant.runtime.cluster import start_ray
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.rows import score_rows


def make_rows(model: PersonalisedRewardModel, count: int, random: np.random.Generator) -> pa.Table:
    """Rows of random users, each with a fresh response of the length of one that the bundle has."""
    assert model.parts.questions is not None, "the bundle needs texts to ask about"
    texts = model.parts.questions.texts
    words = np.array(sorted({word for _, response in texts for word in response.split()}))
    picked = random.integers(len(texts), size=count)
    users = model.parts.user_ids
    return pa.table(
        {
            "user_id": [str(users[row]) for row in random.integers(len(users), size=count)],
            "prompt": [texts[row][0] for row in picked],
            "response": [" ".join(random.choice(words, len(texts[row][1].split()))) for row in picked],
        }
    )


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--rows", type=int, default=8192)
    arguments_of.add_argument("--files", type=int, default=4)
    arguments_of.add_argument("--rows-per-part", type=int, default=1024)
    arguments_of.add_argument("--rounds", type=int, default=3)
    arguments = arguments_of.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    torch.set_num_threads(os.cpu_count() or 1)
    settings = BatchSettings(rows_per_part=arguments.rows_per_part, remembered_texts=0, use_gpu=False)
    model = PersonalisedRewardModel.load(arguments.bundle)
    start_ray()
    figures: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            table = make_rows(model, arguments.rows, np.random.default_rng(number))
            data = Path(folder) / f"rows-{number}"
            data.mkdir()
            step = -(-arguments.rows // arguments.files)
            for at in range(arguments.files):
                pq.write_table(table.slice(at * step, step), data / f"{at}.parquet")
            score_rows(model, table.slice(0, 64))  # the base is loaded
            started = time.perf_counter()
            alone = [
                score_rows(model, table.slice(at, settings.rows_per_part)) for at in range(0, len(table), settings.rows_per_part)
            ]
            bare = len(table) / (time.perf_counter() - started)
            done = score_tables(str(data), str(arguments.bundle), str(Path(folder) / f"out-{number}"), settings=settings)
            scored = pa.concat_tables(
                pq.read_table(Path(folder) / f"out-{number}" / f"{at}.parquet") for at in range(arguments.files)
            )
            expected = np.concatenate([part["score"].to_numpy() for part in alone])
            assert np.allclose(scored["score"].to_numpy(), expected, atol=1e-3), "the job scores what the model scores"
            figures.append((bare, done.rows_per_second, done.start_up_seconds))
            print(f"round {number + 1}: bare {bare:.1f} rows/s, the job {done.rows_per_second:.1f}", flush=True)
    bare, job, start_up = np.array(figures).T
    rows = [
        {"round": number + 1, "bare model, rows/s": float(bare[number]), "job, rows/s": float(job[number]),
         "share": float(job[number] / bare[number]), "start-up, s": float(start_up[number])}
        for number in range(arguments.rounds)
    ]  # fmt: skip
    share = float(np.median(job / bare))
    note = f"The job reaches {share:.1%} of the bare model's rows a second (median of {arguments.rounds}), past start-up."
    kind = "frozen" if model.parts.experts is None else f"{model.parts.experts.settings.num_experts} experts"
    report("batch_scoring", f"Batch scoring, {arguments.rows:,} rows, {kind} bundle, {os.cpu_count()} cores", rows, [note])


if __name__ == "__main__":
    main()
