"""Small files in the published layouts."""

import gzip
import json

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def write_rows(tmp_path):
    """Writes rows as the kind of file that a name ends with, below `tmp_path`."""

    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif name.endswith(".csv"):
            pa_csv.write_csv(pa.Table.from_pylist(rows), path)
        else:
            text = json.dumps(rows) if ".json" in name.replace(".jsonl", "") else "".join(json.dumps(row) + "\n" for row in rows)
            path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


@pytest.fixture
def chosen_texts():
    """(user, prompt, chosen, rejected) of every comparison of some tables."""

    def texts(tables):
        responses = {row["response_id"]: row for row in tables["responses"].to_pylist()}
        return [
            (
                row["user_id"],
                responses[row["chosen_id"]]["prompt"],
                responses[row["chosen_id"]]["response"],
                responses[row["rejected_id"]]["response"],
            )
            for row in tables["comparisons"].to_pylist()
        ]

    return texts
