"""The loop that writes: what joins it is written beside what is there, a token of every row in each turn, and leaves when done.

One thread computes; everything else is asyncio, in one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from penchant.backbone.grouped import Decoder, GroupedModel, Row
from penchant.runtime.serving.chat.events import Event, Finish, Piece
from penchant.runtime.serving.chat.texts import TextStream

ResultT = TypeVar("ResultT")

_READ_AT_ONCE = 8192
"""Tokens of prompts that are read in one turn; the others' next tokens wait for them."""
_PATIENCE = 300.0
"""Seconds that a pass may take."""


@dataclass(eq=False)
class Candidate:
    """One of a request's answers."""

    index: int
    row: Row
    text: TextStream
    tokens: int = 0


@dataclass(eq=False)
class Job:
    """A request in work."""

    candidates: list[Candidate]
    """Those that are not done."""
    max_tokens: int
    release: Callable[[], None]
    """Called once nothing of it is computed any more."""
    events: list[Event] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: BaseException | None = None
    first: float = 0.0
    """When its first tokens were there."""
    rows: int = 0
    """How many were written side by side then."""

    def tell(self, event: Event) -> None:
        """Adds an event."""
        self.events.append(event)
        self.changed.set()


class DecodingLoop:
    """Jobs side by side.

    Args:
        model: With the adapters of all jobs in its slots.
        end: Tokens that end an answer.
    """

    def __init__(self, model: GroupedModel, end: frozenset[int]) -> None:
        self._model, self._end = model, end
        self._decoder = Decoder(model)
        self._job_of: dict[Row, tuple[Job, Candidate]] = {}
        self._joining: list[Job] = []
        self._gone: set[Row] = set()
        """Rows that nobody waits for; they are dropped before the next token."""
        self._released: list[Job] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="penchant-decoding")
        self._began: float | None = None

    def join(self, job: Job) -> None:
        """Writes it from the next turn on."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        self._joining.append(job)
        self._wake.set()

    def leave(self, job: Job) -> None:
        """Writes no more of it."""
        if not job.candidates:
            return
        if job in self._joining:
            self._joining.remove(job)
            self._released.append(job)
        else:
            self._end_job(job)
        self._wake.set()

    def check(self) -> None:
        """Whether it goes on.

        Raises:
            RuntimeError: It has ended, or hangs.
        """
        if self._task is not None and self._task.done():
            raise RuntimeError("the decoding loop has ended")
        if self._began is not None and time.monotonic() - self._began > _PATIENCE:
            raise RuntimeError(f"a pass takes over {_PATIENCE:.0f} s")

    def close(self) -> None:
        """Ends the loop and its thread."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._joining or self._gone or self._released or self._decoder.rows:
                try:
                    await self._turn()
                except Exception as error:
                    self._fail(error)

    async def _turn(self) -> None:
        """Lets go of what is done, takes in what waits, and writes a token of every row."""
        if self._gone:
            gone, self._gone = self._gone, set()
            await self._compute(lambda: self._decoder.drop(gone))
        released, self._released = self._released, []
        for job in released:
            job.release()
        joined = self._next_to_join()
        if joined:
            fresh = {candidate.row: (job, candidate) for job in joined for candidate in job.candidates}
            self._job_of |= fresh
            self._tell(list(fresh), await self._compute(lambda: self._decoder.add(list(fresh))))
        if self._decoder.rows:
            rows = list(self._decoder.rows)
            self._tell(rows, await self._compute(self._decoder.step))

    async def _compute(self, work: Callable[[], ResultT]) -> ResultT:
        self._began = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._began = None

    def _next_to_join(self) -> list[Job]:
        """As many as are read at once; at least one, and not so many that others wait long for their next token."""
        taken: list[Job] = []
        longest = 0
        while self._joining:
            longest = max(longest, len(self._joining[0].candidates[0].row.prompt))
            if taken and longest * (len(taken) + 1) > _READ_AT_ONCE:
                break
            taken.append(self._joining.pop(0))
        return taken

    def _tell(self, rows: list[Row], tokens: list[int]) -> None:
        now = time.perf_counter()
        for row, token in zip(rows, tokens, strict=True):
            if row not in self._job_of:
                continue  # its job was called off meanwhile
            job, candidate = self._job_of[row]
            if not job.first:
                job.first, job.rows = now, len(self._decoder.rows)
            candidate.tokens += 1
            ended = token in self._end
            text = "" if ended else candidate.text.push(token)
            done = ended or candidate.text.stopped or candidate.tokens >= job.max_tokens
            if not done:
                job.tell(Piece(candidate.index, text, candidate.tokens))
                continue
            finish: Finish = "stop" if ended or candidate.text.stopped else "length"
            job.candidates.remove(candidate)
            self._forget(row)
            if not job.candidates:
                self._released.append(job)
            job.tell(Piece(candidate.index, text + candidate.text.end(), candidate.tokens, finish))

    def _forget(self, row: Row) -> None:
        del self._job_of[row]
        self._gone.add(row)

    def _end_job(self, job: Job) -> None:
        for candidate in job.candidates:
            self._forget(candidate.row)
        job.candidates = []
        self._released.append(job)

    def _fail(self, error: Exception) -> None:
        """Nobody's answer goes on from a cache that a failed pass has left behind: who joins next starts afresh."""
        for job in {job for job, _ in self._job_of.values()}:
            job.trouble = error
            self._end_job(job)
            job.changed.set()
        self._gone, self._decoder = set(), Decoder(self._model)
