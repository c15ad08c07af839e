"""OpenAI's chat completions, as far as they are served here. What is not is refused by name, never left aside."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from penchant.adapters.applying import How
from penchant.runtime.serving.chat.events import Finish
from penchant.runtime.serving.schemas import Text, User, readable, whole
from penchant.scoring.model import Personalisation

CHAT_PATH = "/v1/chat/completions"

_WITHOUT_EFFECT: dict[str, Any] = {
    "audio": None,
    "frequency_penalty": 0,
    "function_call": None,
    "functions": None,
    "logit_bias": None,
    "logprobs": False,
    "metadata": None,
    "modalities": ["text"],
    "parallel_tool_calls": None,
    "prediction": None,
    "presence_penalty": 0,
    "reasoning_effort": None,
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "store": False,
    "tool_choice": None,
    "tools": None,
    "top_logprobs": None,
    "web_search_options": None,
}
"""Fields of OpenAI's that are refused, but for null and this value, which ask for nothing."""
_MESSAGE_WITHOUT_EFFECT = ("annotations", "audio", "function_call", "name", "refusal", "tool_calls")


def _without(values: Any, fields: dict[str, Any]) -> Any:
    """What was sent, without what has no effect."""
    if not isinstance(values, dict):
        return values
    return {name: value for name, value in values.items() if name not in fields or not _asks_nothing(value, fields[name])}


def _asks_nothing(value: Any, neutral: Any) -> bool:
    return value is None or (value == neutral and isinstance(value, bool) == isinstance(neutral, bool))


_Integer = BeforeValidator(whole)
_StopText = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(readable),
    WithJsonSchema({"type": "string", "minLength": 1, "pattern": r"^[^\u0000]+$"}),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class TextPart(_Request):
    """A part of a message."""

    type: Literal["text"]
    """Text is all that is read."""
    text: Text


class ChatMessage(_Request):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    """Whose it is; `developer` is read as `system`."""
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    """A text, or parts that are texts."""

    @model_validator(mode="before")
    @classmethod
    def _drop(cls, values: Any) -> Any:
        return _without(values, dict.fromkeys(_MESSAGE_WITHOUT_EFFECT))

    def plain(self) -> dict[str, str]:
        """With the content as one text."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Request):
    """What is streamed besides the text."""

    include_usage: bool | None = None
    """Whether a last chunk counts the tokens."""
    include_obfuscation: Literal[False] | None = None
    """OpenAI's padding of chunks, which there is not."""


class ChatBody(_Request):
    """OpenAI's request. What is served here is below; `tools`, `logprobs`, `response_format` and others are refused."""

    model: Annotated[str, AfterValidator(readable), WithJsonSchema({"type": "string", "pattern": r"^[^\u0000]*$"})]
    """The model's name, as `GET /v1/models` tells it."""
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    """The chat so far."""
    user: User | None = None
    """Whose adapter answers; without one, and for users who have none, the task model does, and the answer says so."""
    n: Annotated[int, Field(ge=1), _Integer] | None = None
    """How many answers; several come best first by the user's own reward."""
    max_tokens: Annotated[int, Field(ge=1), _Integer] | None = None
    """Tokens of an answer, at most. OpenAI's older name."""
    max_completion_tokens: Annotated[int, Field(ge=1), _Integer] | None = None
    """The same by OpenAI's newer name; give one of them."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """1 by default; 0: always the most likely word."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Words are drawn from the likeliest ones that have this probability together; 1 by default: from all."""
    seed: Annotated[int, _Integer] | None = None
    """The same seed draws the same words from the same model."""
    stop: _StopText | Annotated[list[_StopText], Field(max_length=4)] | None = None
    """Texts that end an answer; at most four."""
    stream: bool | None = None
    """Whether the answer comes in pieces, as server-sent events."""
    stream_options: StreamOptions | None = None
    """With `stream` alone."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "penchant",
                    "user": "user-0001",
                    "messages": [{"role": "user", "content": "Explain tides."}],
                    "max_tokens": 8,
                },
                {
                    "model": "penchant",
                    "messages": [{"role": "user", "content": [{"type": "text", "text": "Explain tides."}]}],
                    "n": 2,
                    "max_completion_tokens": 8,
                    "temperature": 0.7,
                    "seed": 1,
                    "stop": ["\n\n"],
                },
            ]
        }
    )

    @model_validator(mode="before")
    @classmethod
    def _drop(cls, values: Any) -> Any:
        return _without(values, _WITHOUT_EFFECT)

    def longest(self) -> int | None:
        """Tokens of an answer, where the request says."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class ChatUsage(_Answer):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    """Of all answers."""
    total_tokens: int


class Ranking(_Answer):
    """How several answers were ordered."""

    by: Literal["reward", "generation"]
    """`reward`: best first by the user's reward; `generation`: as they came (one, streamed, or no reward)."""
    personalisation: Personalisation | None = None
    """How the reward was personalised."""
    bundle: str | None = None
    """Whose reward it is."""


class Personal(_Answer):
    """How the answer was personalised: what OpenAI's has no field for."""

    personalisation: How
    """`own`: by the user's adapter; `task`: there is none; `damaged`: it cannot be read, and the task model answered."""
    base: str
    """Fingerprint of the base model."""
    store: str
    """Fingerprint of what the adapters are."""
    ranking: Ranking


class ChoiceScore(_Answer):
    """What the reward says of an answer."""

    score: float
    """The user's own."""
    uniform: float
    """Of the model without users."""


class AssistantMessage(_Answer):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(_Answer):
    """One of the answers."""

    index: int
    message: AssistantMessage
    finish_reason: Finish
    """`stop`: it came to its end; `length`: to `max_tokens`."""
    logprobs: None = None
    penchant: ChoiceScore | None = None
    """Where answers were ranked by reward."""


class ChatResult(_Answer):
    """OpenAI's answer, with `penchant`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Seconds since 1970."""
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
    system_fingerprint: str
    """Of base and adapters."""
    penchant: Personal


class Model(_Answer):
    """A model that can be named in a request."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "penchant"


class Models(_Answer):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[Model]


class ChatTrouble(_Answer):
    """What is wrong, as OpenAI's clients read it, and as other endpoints here tell it."""

    message: str
    """What is wrong and what to do."""
    type: str
    """OpenAI's word: `invalid_request_error`, `permission_error`, `rate_limit_error`, `api_error` and the like."""
    param: str | None
    """The field that it is about."""
    code: str | None
    """A word for programs."""
    where: str
    fix: str


class ChatFailure(_Answer):
    """The body of every answer that is not a success."""

    error: ChatTrouble
