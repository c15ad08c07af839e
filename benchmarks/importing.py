"""An import of UltraFeedback's size, against reading its lines as JSON and no more.

    python benchmarks/importing.py --prompts 64000

Rows are made up in the published layout: each prompt with four responses of 180 words and 16 ratings, of which the first two are
the binarised pair. Seconds are of this process; memory is the highest of the process so far, so the plain reading comes first.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from _report import report

from penchant.data.importers.ultrafeedback import ASPECTS, import_ultrafeedback

WORDS = ["alpha", "beta", "gamma", "delta", "some", "longer", "words", "for", "texts"]


def write(folder: Path, prompts: int) -> tuple[Path, Path]:
    random.seed(0)
    source, pairs = folder / "ultrafeedback.jsonl", folder / "binarised.jsonl"
    with source.open("w") as ratings, pairs.open("w") as binarised:
        for number in range(prompts):
            prompt = f"{number} " + " ".join(random.choices(WORDS, k=40))
            texts = [" ".join(random.choices(WORDS, k=180)) + f" {one}" for one in range(4)]
            completions = [
                {
                    "model": "m",
                    "response": text,
                    "annotations": {
                        name: {"Rating": str(random.randint(1, 5)), "Rationale": "because " * 20} for name in ASPECTS
                    },
                }
                for text in texts
            ]
            ratings.write(json.dumps({"instruction": prompt, "completions": completions}) + "\n")
            chosen, rejected = ([{"role": "assistant", "content": text}] for text in texts[:2])
            binarised.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    return source, pairs


def measured(name: str, work) -> dict:
    started = time.process_time()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"step": name, "seconds of one core": time.process_time() - started, "highest memory, GiB": peak}


def read_lines(*paths: Path) -> None:
    for path in paths:
        with path.open() as file:
            for line in file:
                json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=8000)
    prompts = parser.parse_args().prompts
    with tempfile.TemporaryDirectory() as name:
        source, pairs = write(Path(name), prompts)
        size = (source.stat().st_size + pairs.stat().st_size) / 1e6
        rows = [
            measured("JSON alone", lambda: read_lines(source, pairs)),
            measured("import", lambda: print(import_ultrafeedback(str(source), Path(name) / "out", pairs=str(pairs)))),
        ]
    ratio = rows[1]["seconds of one core"] / rows[0]["seconds of one core"]
    report(
        "importing",
        f"UltraFeedback in its layout, {prompts:,} prompts, {size:,.0f} MB",
        rows,
        [f"The import takes {ratio:.1f} times as long as reading its lines as JSON."],
    )


if __name__ == "__main__":
    main()
