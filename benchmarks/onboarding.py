"""Onboarding by neighbours: milliseconds a user at 10,000 and at 1,000,000 seen users, against the plain dense way.

    python benchmarks/onboarding.py

The dense peer scores every seen user on the new user's comparisons and keeps those who chose one of the same responses: a
product over all users for each new one. Both give the same embedding where no response is over the cap on neighbours.
"""

import argparse
import time

import numpy as np
from _report import report

from penchant.graph.neighbours import NeighbourIndex, combine, softmax

DIM, PER_USER, COMPARISONS, NEW = 64, 16, 8, 200


def world(users: int, responses: int, random: np.random.Generator) -> tuple:
    user_UD = random.normal(size=(users, DIM)).astype(np.float32)
    user_UD /= np.linalg.norm(user_UD, axis=1, keepdims=True)
    response_RD = random.normal(size=(responses, DIM)).astype(np.float32)
    user = np.repeat(np.arange(users), PER_USER)
    chosen = (responses * random.random(len(user)) ** 2).astype(np.int64)  # a few responses are very popular
    return user_UD, response_RD, user, chosen


def dense(user_UD, response_RD, chose, chosen, rejected, temperature):
    margin_UC = user_UD @ (response_RD[chosen] - response_RD[rejected]).T
    fit_U = -np.logaddexp(0.0, -margin_UC).mean(axis=1)
    neighbour = np.zeros(len(user_UD), dtype=bool)
    for response in chosen:
        neighbour |= chose[response]
    return combine(user_UD[neighbour], softmax(fit_U[neighbour] / temperature))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows, notes = [], []
    for users in (10_000, 1_000_000):
        random = np.random.default_rng(0)
        user_UD, response_RD, user, chosen = world(users, users // 5, random)
        started = time.perf_counter()
        index = NeighbourIndex.build(user, chosen, user_UD, response_RD)
        built = time.perf_counter() - started
        new = [random.choice(len(response_RD), (2, COMPARISONS), replace=False) for _ in range(NEW)]
        # What people choose is mostly what others chose too.
        new = [np.stack([(len(response_RD) * random.random(COMPARISONS) ** 2).astype(np.int64), pair[1]]) for pair in new]
        times = []
        for pair in new:
            started = time.perf_counter()
            index.embed(*pair)
            times.append(time.perf_counter() - started)
        neighbours = float(np.mean([len(index.neighbours(pair[0])) for pair in new]))
        rows.append(
            {
                "way": "sparse index", "seen users": users, "neighbours, mean": neighbours, "index built, s": built,
                "ms a user, median": 1e3 * float(np.median(times)), "ms a user, 95%": 1e3 * float(np.quantile(times, 0.95)),
            }
        )  # fmt: skip
        sample = new[:20]
        chose = {}
        for response in np.unique(np.concatenate([pair[0] for pair in sample])):
            chose[response] = np.zeros(users, dtype=bool)
            chose[response][user[chosen == response]] = True
        plain = []
        for pair in sample:
            started = time.perf_counter()
            whole = dense(user_UD, response_RD, chose, *pair, 0.07)
            plain.append(time.perf_counter() - started)
            if all(index.offset[response + 1] - index.offset[response] <= index.cap for response in pair[0]):
                assert np.allclose(whole, index.embed(*pair), atol=1e-4)
        rows.append(
            {
                "way": "dense over all users", "seen users": users, "neighbours, mean": neighbours, "index built, s": 0.0,
                "ms a user, median": 1e3 * float(np.median(plain)), "ms a user, 95%": 1e3 * float(np.quantile(plain, 0.95)),
            }
        )  # fmt: skip
        ratio = rows[-1]["ms a user, median"] / rows[-2]["ms a user, median"]
        notes.append(f"{users:,} users: {ratio:.1f}x the speed of the dense way in the same run.")
    report("onboarding", f"Onboarding a user from {COMPARISONS} comparisons, dim {DIM}", rows, notes)


if __name__ == "__main__":
    main()
