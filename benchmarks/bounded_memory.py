"""Features of a table of texts that is several times the memory the process may have.

    python benchmarks/bounded_memory.py                                 # 512 MiB of texts, 128 MiB of room
    python benchmarks/bounded_memory.py --table-mib 2048 --room-mib 256

A process of its own reads the texts of a Parquet file, computes their features with a small base of random weights, and
writes them as the feature stage does: `FeatureCache`, then `Prepared.write_features`. Once its libraries and its base are
loaded, what it may allocate beyond that is limited (RLIMIT_DATA: private memory; the pages of mapped files are the system's to
take back). Surface features are left out: they take long in Python, and hold nothing. The peer is the same with all texts in a
list, under the same limit, and without one.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _report import report

WORDS = 2_000
CHARACTERS = 4_000
"""Of a response, about."""


def write_texts(folder: Path, mib: int) -> int:
    """Writes a prepared folder with so many MiB of texts; returns how many texts."""
    random = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(WORDS)], dtype=object)
    count = mib * 2**20 // CHARACTERS
    schema = pa.schema([("prompt", pa.string()), ("response", pa.string())])
    with pq.ParquetWriter(folder / "texts.parquet", schema) as writer:
        for start in range(0, count, 512):
            size = min(512, count - start)
            chosen = words[random.integers(WORDS, size=(size, CHARACTERS // 8))]
            responses = [" ".join(row) for row in chosen]
            writer.write_table(pa.table([[f"Prompt {start + row}" for row in range(size)], responses], schema=schema))
    (folder / "counts.json").write_text(json.dumps({"users": 2, "responses": count}))
    return count


def make_base(folder: Path) -> None:
    """A tiny BERT of random weights, and a tokenizer of the words above."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {f"word{number}": number + 2 for number in range(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


def private_bytes() -> int:
    """What RLIMIT_DATA counts."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmData"))) * 1024


def resident_bytes() -> int:
    """Private memory in use, without mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))) * 1024


def work(folder: Path, *, stream: bool, room: int) -> None:
    import torch

    from penchant.backbone.cache import FeatureCache
    from penchant.backbone.config import BackboneSettings
    from penchant.backbone.features import FeatureExtractor
    from penchant.runtime.training.prepared import Prepared, TextBatches

    torch.set_num_threads(1)
    settings = BackboneSettings(name=str(folder / "base"), max_tokens=64, surface=False)
    extractor = FeatureExtractor(settings, FeatureCache(folder / f"cache-{stream}-{room}"))
    # What is loaded and allocated once, the stacks of Arrow's threads too.
    extractor.features([("warm", "word1 " * 100)] * 600)
    pq.write_table(pa.table({"prompt": ["warm"], "response": ["word1"]}), folder / "warm.parquet")
    list(TextBatches(folder / "warm.parquet"))
    before, peak = resident_bytes(), [0]
    if room:
        limit = private_bytes() + room
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], resident_bytes())
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    prepared, started = Prepared.open(folder), time.perf_counter()
    if stream:
        prepared.write_features(extractor)
    else:
        texts = prepared.texts()
        features = extractor.features(texts)
        np.save(folder / "peer.npy", features)
    seconds = time.perf_counter() - started
    print(json.dumps({"grew_mib": (peak[0] - before) / 2**20, "seconds": seconds}))


def measure(folder: Path, *, stream: bool, room: int) -> dict:
    # Arrow's own allocator reserves ahead; the system's takes what it needs.
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--work", str(folder), "stream" if stream else "list", str(room)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return {"outcome": f"failed: {last[:60]}", "grew, MiB": "-", "seconds": "-"}
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return {"outcome": "done", "grew, MiB": round(result["grew_mib"]), "seconds": round(result["seconds"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table-mib", type=int, default=512)
    parser.add_argument("--room-mib", type=int, default=128)
    arguments = parser.parse_args()
    room, rows = arguments.room_mib * 2**20, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_base(folder / "base")
        count = write_texts(folder, arguments.table_mib)
        for words, stream, limit in (
            ("a batch at a time", True, room),
            ("all in a list", False, room),
            ("all in a list", False, 0),
        ):
            made = measure(folder, stream=stream, room=limit)
            rows.append({"texts": words, "room, MiB": arguments.room_mib if limit else "any", **made})
            print(rows[-1], flush=True)
        assert rows[0]["outcome"] == "done", rows
        if rows[2]["outcome"] == "done":
            streamed = read_streamed(folder)
            assert np.array_equal(streamed, np.load(folder / "peer.npy").astype(np.float16)), "other features"
    report("bounded_memory", f"Features of {count:,} texts, {arguments.table_mib} MiB", rows)


def read_streamed(folder: Path) -> np.ndarray:
    from penchant.runtime.training.prepared import Prepared

    return Prepared.open(folder).features().numpy()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), stream=sys.argv[3] == "stream", room=int(sys.argv[4]))
    else:
        main()
