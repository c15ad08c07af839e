"""From events to OpenAI's answers: whole and ranked, or chunk by chunk."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from penchant.errors import PenchantError, StoreError
from penchant.runtime.serving.chat.events import Ended, Event, GenerationRequest, Piece, Started
from penchant.runtime.serving.chat.schemas import (
    AssistantMessage,
    ChatBody,
    ChatChoice,
    ChatResult,
    ChatUsage,
    ChoiceScore,
    Personal,
    Ranking,
)
from penchant.runtime.serving.failures import chat_failure, chat_status, status_of, told_place
from penchant.runtime.serving.service import Busy, Service, Unavailable

log = logging.getLogger(__name__)


def request_of(body: ChatBody, key: str | None) -> GenerationRequest:
    """What is asked of a replica."""
    return GenerationRequest(
        user=body.user or "",
        messages=tuple(message.plain() for message in body.messages),
        candidates=body.n if body.n is not None else 1,
        max_tokens=body.longest(),
        temperature=body.temperature if body.temperature is not None else 1.0,
        top_p=body.top_p if body.top_p is not None else 1.0,
        seed=body.seed,
        stop=body.stops(),
        stream=bool(body.stream),
        key=bytes.fromhex(key) if key is not None else None,
    )


@dataclass
class Answer:
    """What has been written so far, and what all chunks of it have in common.

    Args:
        model: Its name.
        started: The first event.
        candidates: How many there will be.
    """

    model: str
    started: Started
    candidates: int
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.texts = [""] * self.candidates
        self.tokens = [0] * self.candidates
        self.finish: list[str | None] = [None] * self.candidates

    def take(self, event: Event) -> None:
        """Adds what an event says."""
        if isinstance(event, Piece):
            self.texts[event.index] += event.text
            self.tokens[event.index] = event.tokens
            self.finish[event.index] = event.finish

    def personal(self, ranking: Ranking) -> Personal:
        """How it was personalised."""
        return Personal(personalisation=self.started.how, base=self.started.base, store=self.started.store, ranking=ranking)

    @property
    def fingerprint(self) -> str:
        """Of base and adapters."""
        return f"{self.started.base}-{self.started.store}"

    def usage(self) -> ChatUsage:
        """Tokens so far."""
        read, written = self.started.prompt_tokens, sum(self.tokens)
        return ChatUsage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)

    async def ranked(self, service: Service, tenant: str, body: ChatBody) -> ChatResult:
        """The whole answer; several candidates best first by the user's own reward, where there is one."""
        ranking, scores = Ranking(by="generation"), None
        if self.candidates > 1:
            prompt = next((message.plain()["content"] for message in reversed(body.messages) if message.role == "user"), "")
            try:
                reward = await service.score(tenant, body.user or "", prompt, self.texts)
                ranking = Ranking(by="reward", personalisation=reward.personalisation, bundle=reward.bundle)
                pairs = zip(reward.score, reward.uniform, strict=True)
                scores = [ChoiceScore(score=own, uniform=uniform) for own, uniform in pairs]
            except (Busy, Unavailable, StoreError) as error:  # what is written is not lost for that
                log.warning("candidates are not ranked: %s", type(error).__name__)
        order = list(range(self.candidates))
        if scores is not None:
            order.sort(key=lambda number: -scores[number].score)
        choices = [
            ChatChoice(
                index=place,
                message=AssistantMessage(content=self.texts[number]),
                finish_reason=self.finish[number],  # type: ignore[arg-type]
                penchant=scores[number] if scores is not None else None,
            )
            for place, number in enumerate(order)
        ]
        return ChatResult(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=self.usage(),
            system_fingerprint=self.fingerprint,
            penchant=self.personal(ranking),
        )

    def chunk(self, choices: list[dict[str, object]], **more: object) -> str:
        """One of OpenAI's chunks, as a server-sent event."""
        common = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return _sse(common | {"system_fingerprint": self.fingerprint, "choices": choices} | more)


async def stream(answer: Answer, events: AsyncIterator[list[Event]], *, count: bool) -> AsyncIterator[str]:
    """An answer as server-sent events. A fault amid them is an event, too: the status has long been sent.

    Args:
        events: Those that follow the first list, which is in the answer.
        count: Whether a chunk before the last counts the tokens.
    """
    usage: dict[str, object] = {"usage": None} if count else {}
    personal = {"penchant": answer.personal(Ranking(by="generation")).model_dump()}
    for index in range(answer.candidates):
        yield answer.chunk([_choice(index, {"role": "assistant", "content": ""})], **usage, **personal)
    try:
        async for some in events:
            for event in some:
                answer.take(event)
                if isinstance(event, Ended) or not isinstance(event, Piece):
                    continue
                if event.text:
                    yield answer.chunk([_choice(event.index, {"content": event.text})], **usage)
                if event.finish is not None:
                    yield answer.chunk([_choice(event.index, {}, event.finish)], **usage)
    except PenchantError as error:
        status = chat_status(status_of(error))
        yield _sse(chat_failure(status, error.what, where=told_place(error), fix=error.fix).model_dump())
        return
    if count:
        yield answer.chunk([], usage=answer.usage().model_dump())
    yield "data: [DONE]\n\n"


def _choice(index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, object]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _sse(content: object) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
