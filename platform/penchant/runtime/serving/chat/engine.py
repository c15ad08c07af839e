"""What a writing replica does, without Ray: chats of any users continued side by side, each through the user's own adapter.

A request waits for room, then for its user's adapter, which stays in memory until the request is done, and then joins the loop.
Requests that wait for an adapter do not hold up those that have theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import random
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from penchant.adapters.applying import AdapterPool, Pinned
from penchant.adapters.encryption import LockedError
from penchant.backbone.grouped import Decoder, Row
from penchant.errors import ArtifactError, ConfigError, DataError, PenchantError
from penchant.runtime.serving.chat.events import Ended, Event, GenerationRequest, KeyNeeded, Started
from penchant.runtime.serving.chat.loop import Candidate, DecodingLoop, Job
from penchant.runtime.serving.chat.room import Room
from penchant.runtime.serving.chat.texts import TextStream, encode, end_tokens
from penchant.runtime.serving.config import GeneratorSettings, LimitSettings

log = logging.getLogger(__name__)


class GenerationEngine:
    """A base and a store of adapters at work in a service.

    Args:
        pool: Adapters over a causal language model.
        tokenizer: The base's.
        settings: Rows, template, and what becomes of users whose adapters are damaged.
        limits: Of prompts and answers.

    Raises:
        ConfigError: The base does not write.
    """

    def __init__(self, pool: AdapterPool, tokenizer: Any, settings: GeneratorSettings, limits: LimitSettings) -> None:
        self._model: Any = pool.model.base
        if not self._model.can_generate():  # type: ignore[operator]
            fix = "Give a causal language model, with adapters that were fitted with base.answers=text."
            raise ConfigError("The base chooses labels; it cannot write.", where="generator.base", fix=fix)
        self.pool, self.tokenizer, self.settings, self.limits = pool, tokenizer, settings, limits
        self.base, self.store = pool.store.fingerprint[:16], _fingerprint(pool)
        self._window: int | None = getattr(self._model.config, "max_position_embeddings", None)
        self._room = Room(settings.rows)
        self._loop = DecodingLoop(pool.model, end_tokens(self._model, tokenizer))
        self._pinning = ThreadPoolExecutor(settings.rows, thread_name_prefix="penchant-pins")
        self._told = (0, 0)

    def check(self) -> None:
        """The self-test, before there are requests.

        Raises:
            ArtifactError: What the base says are no numbers.
        """
        prompt = self._encode([{"role": "user", "content": "Is this well?"}])
        tokens = torch.tensor([prompt], device=self._model.device)
        nobody = self.pool.model.nobody
        with torch.inference_mode():
            inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            slot = torch.tensor([nobody], device=self._model.device)
            output = self._model(**inputs) if self.pool.model.prompt_tokens else self.pool.model(slot, **inputs)
        if not bool(torch.isfinite(output.logits).all()):
            raise ArtifactError("What the base says are no numbers.", where=self.settings.base, fix="Make it again.")
        decoder = Decoder(self.pool.model)
        decoder.add([Row(nobody, prompt)])
        decoder.step()

    def check_alive(self) -> None:
        """Whether requests go on.

        Raises:
            RuntimeError: They do not.
        """
        self._loop.check()

    def close(self) -> None:
        """Ends the threads."""
        self._loop.close()
        self._pinning.shutdown()
        self.pool.close()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[Event]]:
        """What becomes of a request: `Started`, then pieces, then `Ended`; all in one list unless it streams.

        Raises:
            DataError: The prompt and the answer do not fit, or the messages are none for the template.
            KeyNeeded: The user's adapter is encrypted, and no key, or another one, was sent.
            ArtifactError: The user's adapter is damaged, and such users get an error.
        """
        began = time.perf_counter()
        prompt, max_tokens = self._read(request)
        await self._room.enter(request.candidates)
        with contextlib.ExitStack() as stack:
            stack.callback(self._room.leave, request.candidates)
            cold = request.user not in self.pool
            pinned = await self._pin(request, stack)
            how, slot = (pinned.how[0], int(pinned.slot[0])) if request.user else ("task", self.pool.model.nobody)
            # Room and adapter are given back by the loop, once nothing of the request is computed any more.
            job = Job(self._candidates(request, prompt, slot), max_tokens, stack.pop_all().close)
        job.tell(Started(how, self.base, self.store, len(prompt), cold and how == "own"))
        self._loop.join(job)
        try:
            while True:
                await job.changed.wait()
                job.changed.clear()
                if job.trouble is not None:
                    raise job.trouble
                done = not job.candidates
                if done:
                    job.events.append(self._ended(job, began))
                if request.stream or done:
                    events, job.events = job.events, []
                    yield events
                if done:
                    return
        finally:
            self._loop.leave(job)

    async def forget(self, user: str) -> bool:
        """Deletes a user's adapter; whether there was one."""
        return await asyncio.to_thread(self.pool.store.delete, user)

    def _encode(self, messages: Any) -> tuple[int, ...]:
        return encode(self.tokenizer, messages, own_template=self.settings.template == "tokenizer")

    def _read(self, request: GenerationRequest) -> tuple[tuple[int, ...], int]:
        """The prompt's tokens, and how many an answer may have."""
        prompt = self._encode(request.messages)
        if not prompt:
            raise DataError("The messages have no token that the model knows.", where="body.messages", fix="Say something.")
        if len(prompt) > self.limits.prompt_tokens:
            what = f"The messages have {len(prompt):,} tokens; {self.limits.prompt_tokens:,} are the limit."
            raise DataError(what, where="body.messages", fix="Shorten them.")
        if self._window is None:
            return prompt, request.max_tokens or self.settings.max_tokens
        room = self._window - len(prompt) - self.pool.model.prompt_tokens
        wanted = request.max_tokens or min(self.settings.max_tokens, max(1, room))
        if wanted > room:
            what = f"{len(prompt):,} tokens of messages and {wanted:,} of answer exceed the model's {self._window:,}."
            raise DataError(what, where="body.messages", fix="Shorten the messages, or ask for less.")
        return prompt, wanted

    async def _pin(self, request: GenerationRequest, stack: contextlib.ExitStack) -> Pinned:
        """Holds the user's adapter in memory until the stack is closed; it is read first if it is not there."""
        users, keys = [request.user] if request.user else [], {request.user: request.key} if request.key else {}
        holding = contextlib.ExitStack()
        waiting = asyncio.get_running_loop().run_in_executor(
            self._pinning, lambda: holding.enter_context(self.pool.pinned(users, keys))
        )
        try:
            pinned = await asyncio.shield(waiting)
        except asyncio.CancelledError:
            waiting.add_done_callback(lambda _: holding.close())  # what is being read is let go of when it is there
            raise
        stack.push(holding)
        if pinned.problems:
            self._refuse_damaged(request, pinned.problems[request.user])
        return pinned

    def _refuse_damaged(self, request: GenerationRequest, problem: PenchantError) -> None:
        """Raises what an adapter that cannot be read means; returns where the task model answers instead."""
        if isinstance(problem, LockedError):
            what = "The user's adapter is encrypted" + (", and this key does not open it." if request.key else ".")
            fix = "Send the key that it was fitted or imported with, as 64 hexadecimal digits."
            raise KeyNeeded(what, where="header.X-Adapter-Key", fix=fix) from problem
        # What an error says may quote an id; where the adapter lies, and what this installation lacks, do not.
        reason = problem.what if isinstance(problem, ConfigError) else type(problem).__name__
        log.warning("The adapter in %s cannot be used: %s", self.pool.store.place(request.user), reason)
        if self.settings.on_damaged == "error":
            what, fix = "The user's adapter is damaged.", "Fit or import it again"
            if isinstance(problem, ConfigError):
                what, fix = "This service cannot open the user's adapter.", "Its log says why"
            fix += "; generator.on_damaged=task has the task model answer meanwhile."
            raise ArtifactError(what, where="body.user", fix=fix) from problem

    def _candidates(self, request: GenerationRequest, prompt: tuple[int, ...], slot: int) -> list[Candidate]:
        drawn = [random.Random(None if request.seed is None else f"{request.seed}/{n}") for n in range(request.candidates)]
        rows = [Row(slot, prompt, request.temperature, request.top_p, each) for each in drawn]
        return [Candidate(index, row, TextStream(self.tokenizer, request.stop)) for index, row in enumerate(rows)]

    def _ended(self, job: Job, began: float) -> Ended:
        now, before = (self.pool.loads, self.pool.evictions), self._told
        self._told = now
        loads, evictions = (new - old for new, old in zip(now, before, strict=True))
        return Ended(time.perf_counter() - began, job.first - began, job.rows, loads, evictions)


def _fingerprint(pool: AdapterPool) -> str:
    """Of what adapters of a store are: their base and PEFT config."""
    content = json.dumps([pool.store.fingerprint, dict(pool.store.config)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
