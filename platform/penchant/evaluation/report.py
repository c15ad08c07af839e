"""`report.html`: one file that opens anywhere, with no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penchant.evaluation import figures
from penchant.evaluation.pages import write_page


@dataclass(frozen=True)
class MapPoints:
    """Users on a plane: aligned arrays of the users that are shown."""

    x: np.ndarray
    y: np.ndarray
    seen: np.ndarray
    """bool"""
    group: list[str] | None
    """Names of the users' true groups, where these are known."""
    total: int
    """Users that there are; the map may show fewer."""


def write_report(path: Path, metrics: dict[str, Any], points: MapPoints | None) -> None:
    """Writes the report of a run's metrics, atomically. A section without numbers is left out."""
    drawn = {
        "bars": figures.accuracy_bars(metrics),
        "map": None if points is None else figures.user_map(points),
        "onboarding": figures.onboarding_curve(metrics),
        "questions": figures.question_curves(metrics),
        "graph": figures.graph_curves(metrics),
        "reward": figures.reward_curves(metrics),
        "calibration": figures.reliability(metrics),
        "experts": figures.expert_map(metrics),
        "expert_curves": figures.expert_curves(metrics),
    }
    write_page(
        path,
        "penchant.evaluation",
        "report.html.jinja",
        drawn,
        metrics=metrics,
        headline=headline(metrics),
        question_sentence=question_sentence(metrics),
        points=points,
        method_names=figures.METHOD_NAMES,
        percent=lambda value: f"{100 * value:.1f}",
        signed=lambda value: f"{100 * value:+.1f}",
        number=_number,
    )


def headline(metrics: dict[str, Any]) -> list[str]:
    """What the numbers say, in words, a sentence for each cohort. A difference that may be none is said to be none."""
    sentences = []
    for cohort, users in (("seen", "users seen in training"), ("unseen", "new users, onboarded")):
        cells = {name: table.get(cohort, {}).get("all") for name, table in metrics.get("accuracy", {}).items()}
        gain = metrics.get("differences", {}).get("personalised-uniform", {}).get(cohort, {}).get("all")
        if not gain or not cells.get("personalised") or not cells.get("uniform"):
            continue
        ranks = (
            f"For {users}, personalised gets {100 * cells['personalised']['value']:.1f}% of held-out choices right "
            f"and uniform {100 * cells['uniform']['value']:.1f}%"
        )
        span = f"{100 * gain['value']:+.1f} points [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
        if gain["low"] > 0:
            verdict = f": {span}."
        elif gain["high"] < 0:
            verdict = f": {span}. Personalising makes it worse here."
        else:
            verdict = f": {span}, an interval that includes 0. Personalising has shown no gain here."
        sentences.append(ranks + verdict)
    return sentences


def question_sentence(metrics: dict[str, Any]) -> str | None:
    """How many well-chosen questions do the work of random ones, in words; None where that was not judged."""
    questions = metrics.get("questions")
    if not questions:
        return None
    answers, needed = questions["answers"], questions["needed"]
    if not needed:
        return f"{answers} random answers bring a new user no gain over uniform: there is nothing to reach sooner."
    words = {way: f"more than {answers}" if cell["value"] > answers else cell["value"] for way, cell in needed.items()}
    span = {way: f"[{cell['low']}, {cell['high']}]" for way, cell in needed.items()}
    verdict = "" if needed["saved"]["low"] > 0 else " Choosing the questions has shown no saving here."
    return (
        f"To {questions['share']:.0%} of the gain that {answers} random answers bring, a new user needs {words['chosen']} "
        f"well-chosen answers {span['chosen']} or {words['random']} random ones {span['random']}: "
        f"{needed['saved']['value']} saved {span['saved']}.{verdict}"
    )


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() or abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
