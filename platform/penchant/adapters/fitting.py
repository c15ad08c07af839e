"""Fits the adapters of many users side by side, in one batch: exactly what fitting them one by one gives.

The loss is the sum of each user's own mean, so that a user's slice gets the gradient that it would get alone; steps, rates,
clipping and the order of examples are each user's own. When a user is done, the next takes the slot: somebody with three
examples and somebody with three thousand are fitted in the same run.

Shapes: B rows, A users who take part in a step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penchant.adapters.config import FittingSettings
from penchant.adapters.courses import Course, split_held_out, user_seed
from penchant.adapters.examples import Example
from penchant.adapters.items import Item, ItemReader
from penchant.adapters.optimization import SlotAdamW, clip_each
from penchant.backbone.grouped import GroupedModel, Rows
from penchant.errors import TrainingError


@dataclass(frozen=True)
class FittedAdapter:
    """What fitting leaves of one user."""

    user: str
    tensors: dict[str, Tensor]
    """As PEFT saves them."""
    examples: int
    """What the user has, with what was held out."""
    steps: int
    loss: float
    """Mean over the steps of the last epoch."""
    held_out_loss: float | None
    """Of this adapter, on what was held out; None where nothing was."""


class AdapterFitter:
    """Fits adapters in the slots of a grouped model.

    Args:
        model: Its slots are how many users are fitted side by side.
        reader: Of the same base, cut at the same layer.
        settings: How each adapter is fitted.
    """

    def __init__(self, model: GroupedModel, reader: ItemReader, settings: FittingSettings) -> None:
        self.model, self.reader, self.settings = model, reader, settings
        self.optimizer = SlotAdamW(model.stacked, weight_decay=settings.weight_decay)
        if settings.recompute:
            model.checkpoint_gradients()

    def fit(self, users: Mapping[str, Sequence[Example]]) -> Iterator[FittedAdapter]:
        """Fits each user's adapter on the user's own examples; yields each as soon as it is done.

        Raises:
            DataError: A user has no example, or one with a target that the base does not know; before anything is computed.
            BackboneError: What enters the lowest adapted layer is beyond float16.
            TrainingError: A user's loss is not finite.
        """
        for user, examples in users.items():
            self.reader.check(user, examples)
        # Whoever takes longest starts first, so that nobody is left alone at the end; what they get is the same in any order.
        waiting = deque(sorted(users, key=lambda user: (-len(users[user]), user)))
        ready: deque[tuple[str, list[Item]]] = deque()
        free = deque(range(self.model.slots))
        courses: list[Course] = []
        while waiting or ready or courses:
            while free and (ready or waiting):
                if not ready:
                    ready.extend(self._prepare(users, waiting))
                courses.append(self._begin(*ready.popleft(), free.popleft()))
            self._step(courses)
            self._judge([course for course in courses if course.at_epoch_end and course.held_out])
            for course in [course for course in courses if course.done]:
                courses.remove(course)
                free.append(course.slot)
                yield self._finish(course)

    def _prepare(self, users: Mapping[str, Sequence[Example]], waiting: deque[str]) -> list[tuple[str, list[Item]]]:
        """The next users' items; what enters their lowest adapted layer is computed for all of them at once."""
        names = [waiting.popleft() for _ in range(min(len(waiting), self.model.slots))]
        prepared = [(user, self.reader.items(users[user])) for user in names]
        self.reader.fill([item for _, items in prepared for item in items])
        return prepared

    def _begin(self, user: str, items: list[Item], slot: int) -> Course:
        course = Course(user, slot, *split_held_out(items, self.settings), self.settings)
        generator = torch.Generator().manual_seed(user_seed(self.settings.seed, user))
        self.model.put(slot, self.model.fresh(generator))
        self.optimizer.reset(slot)
        return course

    def _step(self, courses: Sequence[Course]) -> None:
        """One update of everybody who is being fitted."""
        batches = [course.batch() for course in courses]
        keys = [course.row_keys(len(batch)) for course, batch in zip(courses, batches, strict=True)]
        for parameter in self.model.stacked.values():
            parameter.grad = None
        loss_A = self._losses(courses, batches, keys if self.settings.dropout else None, learn=True)
        for course, loss in zip(courses, loss_A.tolist(), strict=True):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"The loss is {loss} at step {course.step}.",
                    where=f"user {course.user!r}",
                    fix="Lower fitting.learning_rate; users who are done are kept.",
                )
            course.epoch_losses.append(loss)
        slot_A = torch.tensor([course.slot for course in courses], device=loss_A.device)
        if self.settings.clip is not None:
            clip_each(self.model.stacked, slot_A, self.settings.clip)
        self.optimizer.step(slot_A, torch.tensor([course.rate() for course in courses], dtype=torch.float64))
        for course in courses:
            course.step += 1

    def _losses(
        self, courses: Sequence[Course], batches: Sequence[list[Item]], keys: Sequence[list[int]] | None = None, *, learn: bool
    ) -> Tensor:
        """Each user's own mean loss (A,), and its gradient if `learn`. Rows of like length go through the base together."""
        rows = [(owner, place) for owner, batch in enumerate(batches) for place in range(len(batch))]
        rows.sort(key=lambda row: len(batches[row[0]][row[1]].tokens))
        totals = [sum(self.reader.weight(item) for item in batch) for batch in batches]
        device = self.reader.base.device
        loss_A = torch.zeros(len(courses), dtype=torch.float64, device=device)
        for start in range(0, len(rows), self.settings.rows_at_once):
            part = rows[start : start + self.settings.rows_at_once]
            items = [batches[owner][place] for owner, place in part]
            slot_B = torch.tensor([courses[owner].slot for owner, _ in part], device=device)
            if keys is None:
                call = Rows(slot_B)
            else:
                key_B = torch.tensor([keys[owner][place] for owner, place in part], device=device)
                call = Rows(slot_B, self.settings.dropout, key_B)
            with torch.set_grad_enabled(learn):
                loss_B = self.reader.losses(items, self.model(call, **self.reader.inputs(items)).logits)
                loss_B = loss_B / torch.tensor([totals[owner] for owner, _ in part], device=device)
                if learn:
                    loss_B.sum().backward()
            loss_A.index_add_(0, torch.tensor([owner for owner, _ in part], device=device), loss_B.detach().double())
        return loss_A

    def _judge(self, courses: Sequence[Course]) -> None:
        """Looks at what is held out, of everybody who has just ended an epoch."""
        if not courses:
            return
        loss_A = self._losses(courses, [course.held_out for course in courses], learn=False)
        for course, loss in zip(courses, loss_A.tolist(), strict=True):
            course.judge(loss, self.model.take(course.slot))

    def _finish(self, course: Course) -> FittedAdapter:
        return FittedAdapter(
            user=course.user,
            tensors=course.best or self.model.take(course.slot),
            examples=len(course.items) + len(course.held_out),
            steps=course.step,
            loss=sum(course.epoch_losses) / len(course.epoch_losses),
            held_out_loss=course.best_loss if course.best else None,
        )
