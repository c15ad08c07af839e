"""Accuracy with intervals from a two-way cluster bootstrap, paired differences, log-loss and calibration.

Choices of one user hang together, and so do choices about one prompt. So both are resampled: a comparison counts as often as
its user was drawn times its prompt was drawn (the pigeonhole bootstrap; Owen, Annals of Applied Statistics 2007). All
methods are judged on the same draws, which makes their differences paired.

Shapes: C comparisons, U users, P prompts, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from penchant.evaluation.judgements import METHODS, Judgements

_LEVEL = 0.95
_BATCH = 64
DIFFERENCES = (
    ("personalised", "uniform"),
    ("personalised", "frozen"),
    ("personalised", "wrong_user"),
    ("wrong_user", "uniform"),
    ("oracle", "personalised"),
)
"""Pairs of methods whose difference the report shows: the first minus the second."""


class Bootstrap:
    """Accuracy of every method in every cell, and its resamples.

    Args:
        judgements: What is judged.
        resamples: B.
        seed: Fixes the draws.
        methods: Whose margins, in this order; those that are not there are left out.
        measure: From margins (C,) to what is averaged.
    """

    def __init__(
        self,
        judgements: Judgements,
        *,
        resamples: int = 1000,
        seed: int = 0,
        methods: Sequence[str] = METHODS,
        measure: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        measure = measure or correctness
        self.cells = judgements.cells()
        self.methods = [name for name in methods if name in judgements.margins]
        users, user = np.unique(judgements.user, return_inverse=True)
        prompts, prompt = np.unique(judgements.prompt, return_inverse=True)
        right = {name: measure(judgements.margins[name]) for name in self.methods}
        random = np.random.default_rng(seed)
        shape = (len(users), len(prompts))

        def table(value: np.ndarray, mask: np.ndarray) -> sparse.csr_matrix:
            return sparse.csr_matrix((value[mask], (user[mask], prompt[mask])), shape=shape)

        counts = {cell: table(np.ones(len(user)), mask) for cell, mask in self.cells.items()}
        sums = {(name, *cell): table(right[name], mask) for name in self.methods for cell, mask in self.cells.items()}
        self.count = {cell: int(mask.sum()) for cell, mask in self.cells.items()}
        self.value = {
            (name, *cell): float(right[name][mask].mean()) for name in self.methods for cell, mask in self.cells.items()
        }
        drawn: dict[tuple[str, str, str], list[np.ndarray]] = {key: [] for key in sums}
        for start in range(0, resamples, _BATCH):
            size = min(_BATCH, resamples - start)
            user_BU = _draws(random, size, len(users))
            prompt_BP = _draws(random, size, len(prompts))
            totals = {cell: _weighted(user_BU, matrix, prompt_BP) for cell, matrix in counts.items()}
            for key, matrix in sums.items():
                total = totals[key[1:]]
                drawn[key].append(
                    np.divide(_weighted(user_BU, matrix, prompt_BP), total, out=np.full(size, np.nan), where=total > 0)
                )
        self.resampled = {key: np.concatenate(parts) for key, parts in drawn.items()}


def _draws(random: np.random.Generator, size: int, count: int) -> np.ndarray:
    """How often each of `count` is drawn, in each resample: (size, count)."""
    return random.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def _weighted(user_BU: np.ndarray, matrix_UP: sparse.csr_matrix, prompt_BP: np.ndarray) -> np.ndarray:
    return ((matrix_UP.T @ user_BU.T).T * prompt_BP).sum(axis=1)


def correctness(margin: np.ndarray) -> np.ndarray:
    """1 where chosen scores higher, 0 where lower, one half for a tie: (C,)."""
    return (margin > 0) + 0.5 * (margin == 0)


def interval(resampled: np.ndarray, *, widest: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float]:
    """The percentile interval at 95%; the widest that there is where no resample has drawn any of so few comparisons."""
    if np.isnan(resampled).all():
        return widest
    low, high = np.nanquantile(resampled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def accuracy_table(bootstrap: Bootstrap) -> dict[str, Any]:
    """method -> cohort -> kind -> value, low, high, n."""
    table: dict[str, Any] = {}
    for (method, cohort, kind), value in bootstrap.value.items():
        low, high = interval(bootstrap.resampled[method, cohort, kind])
        cell = {"value": value, "low": low, "high": high, "n": bootstrap.count[cohort, kind]}
        table.setdefault(method, {}).setdefault(cohort, {})[kind] = cell
    return table


def paired_differences(bootstrap: Bootstrap) -> dict[str, Any]:
    """`first-second` -> cohort -> kind -> value, low, high, n: accuracy of the first minus that of the second."""
    table: dict[str, Any] = {}
    for first, second in DIFFERENCES:
        if first not in bootstrap.methods or second not in bootstrap.methods:
            continue
        for cohort, kind in bootstrap.cells:
            keys = (first, cohort, kind), (second, cohort, kind)
            low, high = interval(bootstrap.resampled[keys[0]] - bootstrap.resampled[keys[1]], widest=(-1.0, 1.0))
            value = bootstrap.value[keys[0]] - bootstrap.value[keys[1]]
            cell = {"value": value, "low": low, "high": high, "n": bootstrap.count[cohort, kind]}
            table.setdefault(f"{first}-{second}", {}).setdefault(cohort, {})[kind] = cell
    return table


def recovered_share(bootstrap: Bootstrap) -> dict[str, Any]:
    """cohort -> how much of the way from uniform to oracle personalised goes: value, low, high. Left out at no way at all."""
    shares: dict[str, Any] = {}
    if "oracle" not in bootstrap.methods:
        return shares
    for cohort in ("seen", "unseen"):
        keys = {name: (name, cohort, "all") for name in ("uniform", "personalised", "oracle")}
        if keys["uniform"] not in bootstrap.value:
            continue
        uniform, personalised, oracle = (bootstrap.value[key] for key in keys.values())
        if oracle - uniform <= 0:
            continue
        drawn = [bootstrap.resampled[key] for key in keys.values()]
        way = drawn[2] - drawn[0]
        share = np.divide(drawn[1] - drawn[0], way, out=np.full(len(way), np.nan), where=way > 0)
        if np.isnan(share).all():
            continue
        low, high = interval(share)
        shares[cohort] = {"value": (personalised - uniform) / (oracle - uniform), "low": low, "high": high}
    return shares


def calibration_table(judgements: Judgements, *, bins: int = 10) -> dict[str, Any]:
    """method -> cohort -> log_loss, expected_calibration_error and the reliability bins.

    `sigmoid(margin)` is the model's probability of the choice. Both orders of a pair are counted, so that confidence runs
    from one half: the error is `sum over bins of n/N |accuracy - confidence|` (Guo et al., ICML 2017).
    """
    table: dict[str, Any] = {}
    for method in METHODS:
        if method not in judgements.margins:
            continue
        for cohort, mask in (("seen", judgements.seen), ("unseen", ~judgements.seen)):
            if not mask.any():
                continue
            margin = judgements.margins[method][mask].astype(np.float64)
            confidence = 1 / (1 + np.exp(-np.abs(margin)))
            right = correctness(margin)
            at = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
            filled = [number for number in range(bins) if (at == number).any()]
            rows = [
                {
                    "confidence": float(confidence[at == number].mean()),
                    "accuracy": float(right[at == number].mean()),
                    "count": int((at == number).sum()),
                }
                for number in filled
            ]
            error = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / len(margin)
            table.setdefault(method, {})[cohort] = {
                "log_loss": float(np.logaddexp(0, -margin).mean()),
                "expected_calibration_error": float(error),
                "bins": rows,
            }
    return table


def onboarding_points(curve: dict[int, Judgements], *, resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Accuracy of personalised on unseen users' test comparisons, by how many comparisons they were onboarded from."""
    points = []
    for count, judgements in curve.items():
        if not len(judgements.user):
            continue
        bootstrap = Bootstrap(judgements, resamples=resamples, seed=seed)
        key = ("personalised", "unseen", "all")
        low, high = interval(bootstrap.resampled[key])
        points.append({"comparisons": count, "value": bootstrap.value[key], "low": low, "high": high, "n": len(judgements.user)})
    return points
