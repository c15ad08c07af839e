"""Training of the experts: several models side by side on the same prompts, each text encoded once under each route.

Loss: Bradley-Terry (CoPL, eq. 8) and, for models with experts, the load-balancing loss over the step's distinct users.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from penchant.backbone.reading import TextReader
from penchant.backbone.tokens import Text
from penchant.errors import ConfigError, TrainingError
from penchant.reward.batches import PromptBatches
from penchant.reward.config import ExpertSettings
from penchant.reward.experts import Answer, ExpertModel
from penchant.reward.training import UserTable
from penchant.tensors import load_optimizer_tensors, optimizer_tensors, with_prefix, without_prefix

_COOL_DOWN = 0.3
"""Share of the steps over which the learning rate falls to 0, under `warmup_stable_decay`."""


@dataclass(frozen=True)
class ExpertData:
    """Integer-coded comparisons (C,) of texts (R), and what each model knows of the users."""

    texts: Sequence[Text]
    chosen: np.ndarray
    rejected: np.ndarray
    prompt: np.ndarray
    """int64 (C,)"""
    valid: np.ndarray
    """bool (C,): validation comparisons; the others are trained on."""
    users: dict[str, UserTable | None]
    """Model name -> its users, or None for a model without users (uniform)."""


@dataclass(frozen=True)
class ExpertProgress:
    """A step of the training, by model."""

    step: int
    loss: dict[str, float]
    """Bradley-Terry loss of the step, on this worker's prompts."""
    valid_accuracy: dict[str, float]
    """On the validation comparisons of a few prompts; empty where these were not looked at."""
    sequences: int
    """Texts encoded so far by this worker, once for each route."""


@dataclass(frozen=True)
class _Plan:
    """What a model learns from in a step."""

    users: np.ndarray
    """int64 (U,): rows of the model's users, distinct and ascending, of the whole step; empty for a model without users."""
    groups: list[np.ndarray]
    """Comparisons of each of the step's prompts."""
    for_everyone: np.ndarray
    """bool, of the step's prompts: whether the responses are read by the shared expert alone."""


class ExpertTrainer:
    """One worker's part of the training.

    Args:
        settings: Batches and optimisation.
        data: All comparisons; each worker takes its prompts of every step.
        models: By name; they start from the frozen phase's heads. Only what requires a gradient is trained.
        reader: Makes texts ready for the models' base.
        wrap: Makes a model data-parallel (Ray Train's `prepare_model`); identity on one worker.
        average: Averages gradients over the workers, where `wrap` does not see to that (a sharded base).

    Raises:
        ConfigError: There are more workers than prompts in a step.
        TrainingError: There is no training comparison.
    """

    def __init__(
        self,
        settings: ExpertSettings,
        data: ExpertData,
        models: dict[str, ExpertModel],
        reader: TextReader,
        *,
        rank: int = 0,
        world_size: int = 1,
        wrap: Callable[[ExpertModel], torch.nn.Module] = lambda model: model,
        average: Callable[[Sequence[Tensor]], None] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if world_size > settings.prompts_per_step:
            raise ConfigError(
                f"{world_size} workers cannot share {settings.prompts_per_step} prompts.",
                where="experts.prompts_per_step",
                fix=f"Give {world_size} or more.",
            )
        if data.valid.all():
            raise TrainingError("There is no training comparison of a seen user.", fix="Check split and cohort.")
        self.settings, self.data, self.models, self.reader = settings, data, models, reader
        self.rank, self.world_size, self.average, self.device = rank, world_size, average, device
        deal = functools.partial(
            PromptBatches,
            data.chosen,
            data.rejected,
            data.prompt,
            texts_per_group=settings.texts_per_prompt,
            seed=settings.seed,
        )
        self.batches = deal(np.flatnonzero(~data.valid), groups_per_step=settings.prompts_per_step)
        looks = deal(np.flatnonzero(data.valid), groups_per_step=settings.valid_prompts)
        self.looks = looks.step(0)[: len(looks.groups)] if looks.groups else []  # a second round would count them twice
        self.users = {
            name: None if users is None else (users.embedding.to(device), users.row) for name, users in data.users.items()
        }
        self.wrapped = {name: wrap(model) for name, model in models.items()}
        self.optimizers = {name: _optimizer(model, settings) for name, model in models.items()}
        self.step_number, self.sequences = 0, 0

    def step(self) -> dict[str, float]:
        """One update of every model on the same prompts; returns the mean losses of this worker's part.

        Raises:
            TrainingError: A loss is not finite; the message says at which step, and on which comparisons.
        """
        settings, groups = self.settings, self.batches.step(self.step_number)
        parts = min(settings.gradient_accumulation, settings.prompts_per_step // self.world_size)
        own = np.arange(self.rank, len(groups), self.world_size)
        plans = {name: self._plan(name, groups) for name in self.models}
        losses = dict.fromkeys(self.models, 0.0)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(np.array_split(own, parts)):
            for name, plan in plans.items():
                rows = np.concatenate([plan.groups[group] for group in part])
                everyone = np.repeat(plan.for_everyone[part], [len(plan.groups[group]) for group in part])
                with self._synchronised(name, last=number == parts - 1):
                    self._seed_noise()
                    margin, balance = self._margin(name, self.wrapped[name].train(), rows, plan.users, everyone)
                    # Data-parallel training averages gradients over the workers: scale so that the mean is over the whole step.
                    scale = self.world_size / sum(map(len, plan.groups))
                    bradley_terry = -functional.logsigmoid(margin).sum() * scale
                    loss = bradley_terry + settings.load_balance_coef * balance / parts
                    loss.backward()
                losses[name] += bradley_terry.item()
                if not math.isfinite(loss.item()):
                    raise TrainingError(
                        f"The loss of {name!r} is {loss.item()} at step {self.step_number} of the experts' phase.",
                        where=f"comparisons {rows[:8].tolist()}... of prompts {np.unique(self.data.prompt[rows]).tolist()}",
                        fix="Lower experts.learning_rate; the last checkpoint is intact.",
                    )
        rate = learning_rate_share(settings, self.step_number)
        for name, optimizer in self.optimizers.items():
            if self.average is not None:
                parameters = self.models[name].trainable().values()
                self.average([parameter.grad for parameter in parameters if parameter.grad is not None])
            for group in optimizer.param_groups:
                group["lr"] = rate * group["peak"]
            optimizer.step()
        self.step_number += 1
        return losses

    def _plan(self, name: str, groups: list[np.ndarray]) -> _Plan:
        """The step's distinct users, and the comparisons that a model learns from.

        Where routes are few, a prompt's texts are encoded under `routes_per_prompt` of its users' routes, drawn anew each time,
        and those users' comparisons are learnt. Every worker routes all users of the step, so that all agree.
        """
        known, limit = self.users[name], self.settings.routes_per_prompt
        for_everyone = np.zeros(len(groups), dtype=bool)
        if known is None:
            return _Plan(np.zeros(0, dtype=np.int64), groups, for_everyone)
        users, user = np.unique(known[1][np.concatenate(groups)], return_inverse=True)
        model = self.models[name].train()
        if not model.routes_are_few:
            return _Plan(users, groups, for_everyone)
        random = np.random.default_rng([self.settings.seed, 2, self.step_number])
        if self.settings.shared_expert and self.settings.num_experts > 1:
            for_everyone = random.random(len(groups)) < self.settings.expert_dropout
        if limit is None:
            return _Plan(users, groups, for_everyone)
        self._seed_noise()
        with torch.no_grad():
            routing = model.route(known[0][torch.from_numpy(users).to(self.device)])
        assert routing is not None
        expert = routing.distinct()[0].expert[:, 0].cpu().numpy()[user]
        kept = []
        experts = np.split(expert, np.cumsum([len(group) for group in groups])[:-1])
        for group, own, everyone in zip(groups, experts, for_everyone, strict=True):
            routes = np.unique(own)
            drawn = np.isin(own, random.choice(routes, size=min(limit, len(routes)), replace=False))
            kept.append(group if everyone else group[drawn])
        return _Plan(users, kept, for_everyone)

    def _margin(
        self, name: str, model: torch.nn.Module, rows: np.ndarray, users: np.ndarray, everyone: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor]:
        """score(chosen) - score(rejected) of comparisons (C,), and the load-balancing loss over `users`.

        `everyone` (C,): whether their responses are read by the shared expert alone.
        """
        data, known = self.data, self.users[name]
        distinct, text = np.unique(np.concatenate([data.chosen[rows], data.rejected[rows]]), return_inverse=True)
        texts = self.reader.read([data.texts[number] for number in distinct])
        user_UD, user = None, np.zeros(len(rows), dtype=np.int64)
        if known is not None:
            user_UD, user = known[0][torch.from_numpy(users).to(self.device)], np.searchsorted(users, known[1][rows])
        text_B, user_B = (torch.from_numpy(index).to(self.device) for index in (text, np.tile(user, 2)))
        everyone_B = None if everyone is None or not everyone.any() else torch.from_numpy(np.tile(everyone, 2)).to(self.device)
        answer: Answer = model(texts, text_B, user_UD, user_B, everyone_B)
        self.sequences += answer.sequences
        return answer.score[: len(rows)] - answer.score[len(rows) :], answer.balance

    def _seed_noise(self) -> None:
        """Gate noise is fixed by (seed, step), so that all workers and all parts of a step draw the same for a user."""
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step_number)

    def _synchronised(self, name: str, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        model = self.wrapped[name]
        return contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()  # type: ignore[operator]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Share of the validation comparisons of a few prompts that each model ranks right; a tie counts one half.

        Every worker computes the whole, so that a sharded base is called alike on all.
        """
        accuracy = {}
        for name, model in self.models.items():
            model.eval()
            known, margins = self.users[name], []
            for rows in self.looks:
                users = np.zeros(0, dtype=np.int64) if known is None else np.unique(known[1][rows])
                margins.append(self._margin(name, model, rows, users)[0])
            if margins:
                margin = torch.cat(margins)
                accuracy[name] = float(((margin > 0).double() + 0.5 * (margin == 0).double()).mean())
        return accuracy

    def run(self) -> Iterator[ExpertProgress]:
        """Trains to the end, yielding after every step; resumes from a loaded state."""
        while self.step_number < self.settings.steps:
            losses = self.step()
            look = self.step_number % self.settings.evaluate_every == 0 or self.step_number == self.settings.steps
            yield ExpertProgress(self.step_number, losses, self.validate() if look else {}, self.sequences)

    def state(self) -> dict[str, Tensor]:
        """Everything that resuming needs, as tensors by name; the frozen base is not in it."""
        tensors = {"progress": torch.tensor([self.step_number, self.sequences])}
        for name, model in self.models.items():
            trainable = model.trainable()
            tensors |= with_prefix(f"{name}.model", {key: value.detach().clone() for key, value in trainable.items()})
            tensors |= with_prefix(f"{name}.optimizer", optimizer_tensors(list(trainable), self.optimizers[name]))
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes up where `state` was called."""
        self.step_number, self.sequences = (int(value) for value in tensors["progress"])
        for name, model in self.models.items():
            trainable, saved = model.trainable(), without_prefix(f"{name}.model", tensors)
            with torch.no_grad():
                for key, parameter in trainable.items():
                    parameter.copy_(saved[key])
            load_optimizer_tensors(list(trainable), self.optimizers[name], without_prefix(f"{name}.optimizer", tensors))


def _optimizer(model: ExpertModel, settings: ExpertSettings) -> torch.optim.AdamW:
    """AdamW over `model.trainable()`, in its order: the adapters, then the head at a rate of its own."""
    trainable = model.trainable()
    head = {name for name in trainable if name.startswith("head.")}
    groups = [
        {"params": [trainable[name] for name in trainable if (name in head) == is_head], "peak": peak}
        for is_head, peak in ((False, settings.learning_rate), (True, settings.head_learning_rate))
    ]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=settings.weight_decay)


def learning_rate_share(settings: ExpertSettings, step: int) -> float:
    """Share of the highest learning rate at a step, counted from 0."""
    warmup = settings.warmup_ratio * settings.steps
    rising = (step + 1) / max(1.0, warmup)
    if settings.lr_scheduler_type == "warmup_stable_decay":
        return min(1.0, rising, (1 - step / settings.steps) / _COOL_DOWN)
    return rising if rising < 1 else 0.5 * (1 + math.cos(math.pi * max(0.0, step - warmup) / max(1.0, settings.steps - warmup)))
