"""Requests and answers of the HTTP API. What a client sends is checked here, before any work."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from penchant.scoring.model import Personalisation


def readable(text: str) -> str:
    """A text that can be stored and written.

    Raises:
        ValueError: It holds NUL, or half of a surrogate pair.
    """
    if "\x00" in text:
        raise ValueError("it holds a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no text") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("it is blank")
    return text


def check_user(user: str) -> str:
    """A user id that can be stored: 1 to 256 characters, no NUL, no half surrogate.

    Raises:
        ValueError: It cannot.
    """
    if not 1 <= len(user) <= 256:
        raise ValueError("a user id has 1 to 256 characters")
    return _not_blank(readable(user))


def _document(document: object) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise ValueError("it has no text")
    return _not_blank(readable(text))


def whole(number: object) -> object:
    """JSON has one kind of number: 2.0 is an integer too."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


# What a text must be, as the OpenAPI says it: no NUL, and something besides white space. The validators say it to people. What
# `\s` means differs between languages, so Python's white space is spelt out.
_SPACE = r"\t-\r\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1, "pattern": rf"^[^\u0000]*[^\u0000{_SPACE}][^\u0000]*$"}
USER_SCHEMA: dict[str, Any] = _TEXT | {"maxLength": 256}
_DOCUMENT = {"anyOf": [_TEXT, {"type": "object", "properties": {"text": _TEXT}, "required": ["text"]}]}

Text = Annotated[str, AfterValidator(readable), AfterValidator(_not_blank), WithJsonSchema(_TEXT)]
User = Annotated[str, AfterValidator(check_user), WithJsonSchema(USER_SCHEMA)]
Document = Annotated[str, BeforeValidator(_document), WithJsonSchema(_DOCUMENT)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class ScoreBody(_Request):
    """Responses to one prompt, to be scored for a user."""

    user: User
    """Whose scores; a user whom nobody knows gets uniform ones, and the answer says so."""
    prompt: Text
    """What the responses answer."""
    responses: Annotated[list[Text], Field(min_length=1)]
    """At least one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "user": "user-0001",
                    "prompt": "Explain tides.",
                    "responses": ["The moon pulls on the sea.", "Step one: look at the moon."],
                }
            ]
        }
    )


class ScoreItem(_Answer):
    """The scores of one response."""

    index: int
    """Its place in the request."""
    score: float
    """The user's own; higher is preferred, and only differences mean something."""
    uniform: float
    """What the model without users says."""


class ScoreResult(_Answer):
    """Scores, in the order of the request."""

    user: str
    personalisation: Personalisation
    """`unknown`: the scores are uniform ones."""
    bundle: str
    """The bundle that answered."""
    scores: list[ScoreItem]


class RerankBody(BaseModel):
    """Cohere's and Jina's request, with `user`. Fields of theirs that mean nothing here are accepted and left."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {"user": "user-0001", "query": "Explain tides.", "documents": ["The moon.", {"text": "Steps."}], "top_n": 1}
            ]
        },
    )

    user: User | None = None
    """Whose ranking; without one, the uniform ranking."""
    query: Text
    """What the documents answer."""
    documents: Annotated[list[Document], Field(min_length=1)]
    """Texts, or objects with a `text`."""
    top_n: Annotated[int, Field(ge=1), BeforeValidator(whole)] | None = None
    """How many to return; all by default."""
    return_documents: bool = False
    """Whether each result holds its document."""
    model: str | None = None
    """Accepted, and not used: the service has one model."""


class RerankItem(_Answer):
    """A document, best first."""

    index: int
    """Its place in the request."""
    relevance_score: float
    """sigmoid(score): between 0 and 1, in the order of the scores."""
    document: dict[str, Any] | None = None
    """The document, where it was asked for."""


class RerankResult(_Answer):
    """The ranking."""

    id: str
    """Of this answer."""
    results: list[RerankItem]
    meta: dict[str, Any]
    """API version, and how the ranking was personalised, by which bundle."""


class ComparisonBody(_Request):
    """One choice: `chosen` over `rejected`, two responses to `prompt`; any two texts that differ in more than white space around
    them."""

    prompt: Text
    chosen: Text
    rejected: Text

    @model_validator(mode="after")
    def _check(self) -> ComparisonBody:
        if self.chosen.strip() == self.rejected.strip():  # a data set's texts are stripped, and the next fit reads these
            raise ValueError("chosen and rejected are the same text")
        return self


class ComparisonsBody(_Request):
    """Choices that a user made."""

    comparisons: Annotated[list[ComparisonBody], Field(min_length=1)]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"comparisons": [{"prompt": "Explain tides.", "chosen": "The moon pulls.", "rejected": "Step one: the moon."}]}
            ]
        }
    )


class Stored(_Answer):
    """Choices that are stored, and count from now on."""

    user: str
    version: int
    """Of what is known about the user; grows with every change."""
    comparisons: int
    """How many there are now."""
    personalisation: Personalisation
    """`unknown` where the choices are stored and the model could not be asked just now: the next score will use them."""
    bundle: str | None
    """The bundle that onboarded the user, or None."""


class UserResult(_Answer):
    """What is known of a user."""

    user: str
    personalisation: Personalisation
    version: int
    """0 where nothing is stored."""
    comparisons: int
    """How many choices are stored."""
    bundle: str
    position: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    """Where the user stands on the map of users."""


class Forgotten(_Answer):
    """What was deleted."""

    user: str
    comparisons: int
    """How many choices were deleted."""


class NextComparison(_Answer):
    """The two responses whose comparison would tell most about the user."""

    user: str
    prompt: str
    responses: Annotated[list[str], Field(min_length=2, max_length=2)]
    bits: float
    """What the answer is expected to tell: the mutual information with who the user is, 1 at most."""
    bundle: str


class Trouble(_Answer):
    """What is wrong."""

    type: str
    """A word for programs, such as `invalid_request`, `unauthorised`, `too_large`, `busy` or `unavailable`."""
    message: str
    """What is wrong."""
    where: str
    """The field, header or part that it is about."""
    fix: str
    """What to do."""


class Failure(_Answer):
    """The body of every answer that is not a success."""

    error: Trouble
