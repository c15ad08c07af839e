"""What a trial says of itself at each look at the validation comparisons."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penchant.artifacts import read_json
from penchant.graph.training import GraphTrainer
from penchant.reward.config import HeadSettings
from penchant.reward.expert_training import ExpertTrainer
from penchant.reward.heads import make_head
from penchant.reward.training import RewardTrainer
from penchant.runtime.training.prepared import Prepared
from penchant.storage import Location
from penchant.tensors import read_tensors

MODEL = "personalised"
"""The one model that a trial trains."""


@dataclass(frozen=True)
class Heads:
    """The frozen phase's heads, which a trial's experts go on from: what a look at few prompts is measured against.

    A look of the experts reads the validation comparisons of a few prompts only, for reading texts is what costs. The heads read
    cached features, and are judged on all. So a look counts as the heads' accuracy on all, plus what the experts gain over the
    heads on the comparisons of the look (a control variate): which few prompts these are then matters little.
    """

    folder: Path
    settings: HeadSettings
    prepared: Location

    def correction(self, trainer: ExpertTrainer) -> float:
        """The heads' accuracy on all validation comparisons, minus that on the trainer's looks."""
        rows, data, known = np.concatenate(trainer.looks), trainer.data, trainer.data.users[MODEL]
        assert known is not None
        tensors = read_tensors(self.folder / f"{MODEL}.safetensors")
        feature_RF = Prepared.open(self.prepared).features()
        head = make_head(self.settings, feature_dim=feature_RF.shape[1], user_dim=known.embedding.shape[1])
        head.load_state_dict(tensors)
        head.eval()
        user_CD = known.embedding[known.row[rows]]
        with torch.no_grad():
            chosen, rejected = (head(feature_RF[side[rows]].float(), user_CD) for side in (data.chosen, data.rejected))
        on_looks = ((chosen > rejected).double() + 0.5 * (chosen == rejected).double()).mean()
        return float(read_json(self.folder / "reward.json")["valid_accuracy"][MODEL]) - float(on_looks)


class Looks:
    """What a stage's loop calls with each progress; reports those that looked at the validation comparisons.

    Args:
        report: Ray Tune's, or (in a group of workers) Ray Train's.
        shared_seconds: Spent before the stage: on what trials share, or waiting for it.
        heads: Those that experts were trained on from.
    """

    def __init__(self, report: Callable[[dict[str, Any]], None], *, shared_seconds: float, heads: Heads | None = None) -> None:
        self.report, self.shared_seconds, self.heads = report, shared_seconds, heads
        self.correction: float | None = None if heads else 0.0
        self.best = -1.0
        self.compared = 0
        self.first: tuple[float, int] | None = None
        self.last: tuple[float, int] | None = None
        self.step_seconds: list[float] = []

    def __call__(self, trainer: Any, progress: Any) -> None:
        """Reports `accuracy`, the best on validation so far; `valid_accuracy`, this look's; and what it took."""
        now = time.monotonic()
        accuracy = progress.valid_accuracy
        if isinstance(accuracy, dict):
            accuracy = accuracy.get(MODEL)
        if self.last is not None and (accuracy is None or not isinstance(trainer, ExpertTrainer)):
            # An expert's look is no part of its step; elsewhere looks are cheap, and come with every progress.
            self.step_seconds.append((now - self.last[0]) / max(1, progress.step - self.last[1]))
        self.first = self.first or (now, progress.step)
        if accuracy is not None:
            if self.correction is None and self.heads is not None:
                self.correction = self.heads.correction(trainer)
            accuracy += self.correction or 0.0
            self.compared = self.compared or count_compared(trainer)
            self.best = max(self.best, accuracy)
            self.report(
                {
                    "step": progress.step,
                    "accuracy": self.best,
                    "valid_accuracy": accuracy,
                    "compared": self.compared,
                    "parameters": count_parameters(trainer),
                    "step_seconds": self._seconds_a_step(),
                    "training_seconds": round(now - self.first[0] + self.first[1] * self._seconds_a_step(), 2),
                    "shared_seconds": round(self.shared_seconds, 2),
                }
            )
        self.last = (time.monotonic(), progress.step)

    def _seconds_a_step(self) -> float:
        return sum(self.step_seconds) / len(self.step_seconds) if self.step_seconds else 0.0


def count_parameters(trainer: GraphTrainer | RewardTrainer | ExpertTrainer) -> int:
    """Numbers that the personalised model trains, over all workers."""
    if isinstance(trainer, GraphTrainer):
        replicated = sum(parameter.numel() for parameter in trainer.encoder.replicated_parameters())
        own = sum(parameter.numel() for parameter in trainer.encoder.parameters()) - replicated
        device = next(trainer.encoder.parameters()).device
        return replicated + int(trainer.collective.sum(torch.tensor(own, dtype=torch.float64, device=device)))
    if isinstance(trainer, RewardTrainer):
        return sum(parameter.numel() for parameter in trainer.heads[MODEL].parameters())
    return sum(parameter.numel() for parameter in trainer.models[MODEL].trainable().values())


def count_compared(trainer: GraphTrainer | RewardTrainer | ExpertTrainer) -> int:
    """Validation comparisons of a look, over all workers."""
    if isinstance(trainer, GraphTrainer):
        own = trainer.valid.comparison
        return int(trainer.collective.sum(torch.tensor(len(own), dtype=torch.float64, device=own.device)))
    if isinstance(trainer, RewardTrainer):
        return len(trainer.valid_rows)
    return sum(len(rows) for rows in trainer.looks)
