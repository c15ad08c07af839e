"""BM25 over only what came before each item of a history: seconds, against building an index for each item with bm25s.

    python benchmarks/bm25_before.py

A column says for which share of the items both give the four best before it the same scores.
"""

import argparse
import time

import bm25s
import numpy as np
from _report import report

from penchant.adapters.retrieval import Bm25Retriever

WORDS, LENGTH, K = 5_000, 80, 4


def history(items: int) -> list[str]:
    random = np.random.default_rng(0)
    rank = (WORDS * random.random((items, LENGTH)) ** 3).astype(int)  # few words are common, most are rare
    return [" ".join(f"w{word}" for word in row) for row in rank]


def penchant_way(texts: list[str]) -> list[np.ndarray]:
    ranking = Bm25Retriever().rank(texts)
    found = []
    for before in range(1, len(texts)):
        scores = ranking.scores(texts[before], before)
        found.append(scores[ranking.top(texts[before], before=before, k=K)])
    return found


def index_each(texts: list[str]) -> list[np.ndarray]:
    words = bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
    found = []
    for before in range(1, len(texts)):
        index = bm25s.BM25(method="lucene")
        index.index(words[:before], show_progress=False)
        known = [word for word in words[before] if word in index.vocab_dict]
        scores = index.get_scores(known) if known else np.zeros(before)
        found.append(np.sort(scores)[::-1][:K])
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    for items in (50, 100, 200, 400):
        texts = history(items)
        seconds, found = [], []
        for way in (penchant_way, index_each):
            started = time.perf_counter()
            found.append(way(texts))
            seconds.append(time.perf_counter() - started)
        same = np.mean([np.allclose(one, other, rtol=1e-4) for one, other in zip(*found, strict=True)])
        rows.append(
            {"items": items, "penchant s": seconds[0], "an index each s": seconds[1], "ratio": seconds[1] / seconds[0],
             "same best scores": float(same)}
        )  # fmt: skip
    texts = history(3_000)
    started = time.perf_counter()
    penchant_way(texts)
    note = f"3,000 items: {time.perf_counter() - started:.2f} s; of an index each, the time grows with the square of the items."
    report("bm25_before", f"The {K} best of what came before, for each item of a history ({LENGTH} words each)", rows, [note])


if __name__ == "__main__":
    main()
