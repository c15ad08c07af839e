"""The metrics that LaMP and OPPU report: accuracy and macro-F1, MAE and RMSE, ROUGE-1 and ROUGE-L."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score

from penchant.adapters.tasks.outputs import read_output
from penchant.data.lamp import LampTask


def per_query(task: LampTask, outputs: Sequence[str], golds: Sequence[str]) -> dict[str, np.ndarray]:
    """Each query's part of the metrics that are means over queries, for intervals and paired tests: float64 (Q,) each.

    Args:
        outputs: What the model wrote, as it wrote it.
        golds: The answers, in the same order.

    Raises:
        ValueError: There are no queries, or not as many outputs as answers.
    """
    if len(outputs) != len(golds) or not golds:
        raise ValueError(f"{len(outputs)} outputs and {len(golds)} answers: there must be as many, and at least one.")
    answers = [read_output(task, output) for output in outputs]
    if task.kind == "classification":
        return {"accuracy": np.array([answer == gold for answer, gold in zip(answers, golds, strict=True)], dtype=np.float64)}
    if task.kind == "rating":
        error = np.array([_stars(answer, float(gold)) - float(gold) for answer, gold in zip(answers, golds, strict=True)])
        return {"absolute_error": np.abs(error), "squared_error": error**2}
    # As Hugging Face's `rouge` does, which LaMP's evaluation calls: no stemming; the F-measure.
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    scores = [scorer.score(gold, answer) for answer, gold in zip(answers, golds, strict=True)]
    return {
        "rouge_1": np.array([found["rouge1"].fmeasure for found in scores]),
        "rouge_l": np.array([found["rougeL"].fmeasure for found in scores]),
    }


def score(task: LampTask, outputs: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """The task's metrics over all queries. Higher is better, but for `mae` and `rmse`.

    Raises: as `per_query`.
    """
    parts = per_query(task, outputs, golds)
    if task.kind == "rating":
        return {"mae": float(parts["absolute_error"].mean()), "rmse": float(np.sqrt(parts["squared_error"].mean()))}
    means = {name: float(values.mean()) for name, values in parts.items()}
    if task.kind == "classification":
        code = {label: number for number, label in enumerate(task.labels)}
        said = [code.get(read_output(task, output), -1) for output in outputs]
        # Over all of the task's labels, as LaMP's evaluation has it: one that nobody used counts as 0.
        means["macro_f1"] = float(
            f1_score([code[gold] for gold in golds], said, labels=range(len(code)), average="macro", zero_division=0)
        )
    return means


def _stars(answer: str, gold: float) -> float:
    try:
        stars = float(answer)
    except ValueError:
        stars = math.nan
    if math.isfinite(stars):
        return stars
    # No number: as wrong as can be, as in LaMP's evaluation.
    return 1.0 if abs(1 - gold) > abs(5 - gold) else 5.0
