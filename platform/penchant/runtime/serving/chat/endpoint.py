"""`POST /v1/chat/completions` and `GET /v1/models`."""

# No `from __future__ import annotations` here: FastAPI reads the endpoints' annotations, which name local dependencies.

from contextlib import aclosing
from typing import Annotated, Any

from fastapi import FastAPI, Header, Response
from fastapi.responses import StreamingResponse
from pydantic import WithJsonSchema

from penchant.runtime.serving.chat.answers import Answer, request_of, stream
from penchant.runtime.serving.chat.events import Event, Started
from penchant.runtime.serving.chat.schemas import CHAT_PATH, ChatBody, ChatFailure, ChatResult, Model, Models
from penchant.runtime.serving.failures import Refusal
from penchant.runtime.serving.service import Service
from penchant.store import KeyRecord

_TEXTS: dict[int | str, str] = {
    400: "What was sent cannot be used, or asks for what is not served; the error names the field",
    401: "No key, or one that is not known, expired or revoked",
    403: "The key may not do this, or the user's adapter is encrypted and its own key is missing or another one",
    404: "There is no such model, or the service does not write",
    408: "The body took too long",
    413: "The body, or a text in it, is too large",
    429: "Too much to do; try again after Retry-After seconds",
    "4XX": "What was sent cannot be used",
    500: "The user's adapter is damaged",
    503: "The store or the model cannot be reached; try again after Retry-After seconds",
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ChatFailure, "description": text} for status, text in _TEXTS.items()
}
_STREAMED = {"description": "With `stream`, chunks as server-sent events", "content": {"text/event-stream": {}}}
_KEY = "^[0-9a-fA-F]{64}$"
_AdapterKey = Header(alias="X-Adapter-Key", pattern=_KEY, description="The user's own key, where their adapter is encrypted.")


def add_chat(app: FastAPI, service: Service, may_write: Any) -> None:
    """Adds the endpoints.

    Args:
        may_write: The dependency that gives the request's key.
    """
    name = service.settings.generator.model if service.settings.generator is not None else None

    @app.post(CHAT_PATH, responses={200: _STREAMED, **_REFUSALS}, response_model=ChatResult, tags=["chat"])
    async def chat(
        body: ChatBody,
        response: Response,
        key: Annotated[KeyRecord, may_write],
        adapter_key: Annotated[str | None, _AdapterKey, WithJsonSchema({"type": "string", "pattern": _KEY})] = None,
    ) -> Any:
        """An answer through the user's own adapter: OpenAI's request and answer, so that OpenAI's clients work.

        `penchant` in the answer says how it was personalised. Several answers (`n`) come best first by the user's own reward,
        unless they are streamed.
        """
        if name is not None and body.model != name:
            raise Refusal(404, f"There is no model {body.model[:80]!r}.", where="body.model", fix=f"Ask for {name!r}.")
        _check(body, service)
        events = service.generate(key.tenant, request_of(body, adapter_key))
        first = await anext(events)
        started = first[0]
        assert isinstance(started, Started)
        answer = Answer(body.model, started, body.n if body.n is not None else 1)
        said = {"X-Penchant-Personalisation": started.how}
        if body.stream:
            count = body.stream_options is not None and bool(body.stream_options.include_usage)
            return StreamingResponse(
                stream(answer, _after(first[1:], events), count=count), media_type="text/event-stream", headers=said
            )
        async for some in _after(first[1:], events):
            for event in some:
                answer.take(event)
        response.headers.update(said)
        return await answer.ranked(service, key.tenant, body)

    @app.get("/v1/models", responses={401: _REFUSALS[401], 403: _REFUSALS[403]}, tags=["chat"])
    async def models(key: Annotated[KeyRecord, may_write]) -> Models:
        """The model that chats can name, in OpenAI's shape; none where the service does not write."""
        return Models(data=[Model(id=name)] if name is not None else [])


async def _after(first: list[Event], events: Any) -> Any:
    async with aclosing(events):
        yield first
        async for some in events:
            yield some


def _check(body: ChatBody, service: Service) -> None:
    limits = service.settings.limits
    if len(body.messages) > limits.messages:
        what = f"{len(body.messages):,} messages; {limits.messages:,} are the limit."
        raise Refusal(413, what, where="body.messages", fix="Send fewer.")
    for number, message in enumerate(body.messages):
        if len(text := message.plain()["content"]) > limits.text_characters:
            what = f"A message has {len(text):,} characters; {limits.text_characters:,} are the limit."
            raise Refusal(413, what, where=f"body.messages.{number}.content", fix="Shorten it.")
    for field, value, limit in (
        ("n", body.n, min(limits.candidates, service.settings.generator.rows if service.settings.generator else 1)),
        ("max_tokens", body.max_tokens, limits.generated_tokens),
        ("max_completion_tokens", body.max_completion_tokens, limits.generated_tokens),
    ):
        if value is not None and value > limit:
            raise Refusal(400, f"{value:,} is over the limit of {limit:,}.", where=f"body.{field}", fix="Ask for less.")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        what = "max_tokens and max_completion_tokens differ."
        raise Refusal(400, what, where="body.max_tokens", fix="Send one of them.")
    if body.stream_options is not None and not body.stream:
        raise Refusal(400, "There is no stream.", where="body.stream_options", fix="Set stream, or leave it out.")
