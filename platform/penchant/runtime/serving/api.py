"""The HTTP API: keys, limits, and the endpoints of `Service`."""

# No `from __future__ import annotations` here: FastAPI reads the endpoints' annotations, which name local dependencies.

import datetime
import math
import uuid
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Depends, FastAPI, Header, Path, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from penchant import __version__
from penchant.data.choices import TextComparison
from penchant.runtime.serving.chat.endpoint import add_chat
from penchant.runtime.serving.config import ServiceSettings
from penchant.runtime.serving.failures import Refusal, handle_failures
from penchant.runtime.serving.gate import Gate
from penchant.runtime.serving.schemas import (
    USER_SCHEMA,
    ComparisonsBody,
    Failure,
    Forgotten,
    NextComparison,
    RerankBody,
    RerankItem,
    RerankResult,
    ScoreBody,
    ScoreItem,
    ScoreResult,
    Stored,
    UserResult,
    check_user,
)
from penchant.runtime.serving.service import Service
from penchant.scoring.questions import NoQuestions
from penchant.store import KeyRecord, Scope

_bearer = HTTPBearer(auto_error=False, description="`Authorization: Bearer penchant_...`; `penchant keys create` makes one.")
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": text}
    for status, text in {
        400: "The body ended too soon, or is not JSON in UTF-8",
        401: "No key, or one that is not known, expired or revoked",
        403: "The key may not do this",
        404: "The service has no bundle",
        408: "The body took too long",
        413: "The body is too large",
        422: "What was sent cannot be used; the body says where",
        429: "Too much to do; try again after Retry-After seconds",
        503: "The store or the model cannot be reached; try again after Retry-After seconds",
    }.items()
}


def make_app(service: Service) -> FastAPI:
    """The API over a service."""
    settings = service.settings
    app = FastAPI(
        title="Penchant",
        version=__version__,
        summary="Scores of texts as each person would give them.",
        docs_url="/docs",
        redoc_url=None,
    )
    handle_failures(app)
    app.add_middleware(Gate, limits=settings.limits, measures=service.measures)
    _add_probes(app, service)
    _add_endpoints(app, service)
    add_chat(app, service, _allowed(service, "score", "admin"))
    if settings.bundle is not None:
        _add_bundle(app, service)
        if settings.playground:
            _add_playground(app)
    return app


def _allowed(service: Service, *scopes: Scope) -> Any:
    """A dependency: the request's key, which must have one of these scopes."""

    async def check(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> KeyRecord:
        fix = "Send Authorization: Bearer <key>; `penchant keys create` makes one."
        if credentials is None:
            raise Refusal(401, "There is no key.", where="Authorization", fix=fix)
        key = await service.find_key(credentials.credentials)
        if key is None:
            raise Refusal(401, "The key is not known.", where="Authorization", fix=fix)
        if not key.valid(datetime.datetime.now(datetime.UTC)):
            what = "was revoked" if key.revoked is not None else "has expired"
            raise Refusal(401, f"The key {what}.", where="Authorization", fix=fix)
        if not set(scopes) & set(key.scopes):
            what = f"The key may not do this: it has {', '.join(key.scopes)}."
            raise Refusal(403, what, where="Authorization", fix=f"Use one with {' or '.join(scopes)}.")
        return key

    return Depends(check)


_UserParameter = Path(description="A user id; escape a slash as %2F.", examples=["user-0001"], json_schema_extra=USER_SCHEMA)


def _user(user: Annotated[str, _UserParameter]) -> str:
    """A user id from the path, where it stands as it was sent."""
    try:
        return check_user(unquote(user, errors="strict"))
    except UnicodeDecodeError:
        raise Refusal(422, "The user id is not UTF-8.", where="path.user", fix="Escape it as UTF-8.") from None
    except ValueError as error:
        raise Refusal(422, f"{str(error)[0].upper()}{str(error)[1:]}.", where="path.user", fix="Give another id.") from None


PathUser = Annotated[str, Depends(_user)]


def _check_lengths(settings: ServiceSettings, texts: dict[str, str]) -> None:
    limit = settings.limits.text_characters
    for where, text in texts.items():
        if len(text) > limit:
            raise Refusal(413, f"A text has {len(text):,} characters; {limit:,} are the limit.", where=where, fix="Shorten it.")


def _check_count(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise Refusal(413, f"{count:,} {name}; {limit:,} are the limit.", where=f"body.{name}", fix="Send several requests.")


def _add_endpoints(app: FastAPI, service: Service) -> None:
    settings, limits = service.settings, service.settings.limits
    may_score = _allowed(service, "score", "admin")
    may_onboard = _allowed(service, "onboard", "admin")
    may_read = _allowed(service, "score", "onboard", "admin")
    may_delete = _allowed(service, "admin")

    @app.post("/v1/score", responses=_REFUSALS, tags=["score"])
    async def score(body: ScoreBody, response: Response, key: Annotated[KeyRecord, may_score]) -> ScoreResult:
        """Scores of responses to one prompt for one user, in order."""
        _check_count("responses", len(body.responses), limits.responses)
        texts = {f"body.responses.{number}": text for number, text in enumerate(body.responses)}
        _check_lengths(settings, {"body.prompt": body.prompt} | texts)
        answer = await service.score(key.tenant, body.user, body.prompt, body.responses)
        response.headers["Server-Timing"] = _timing(answer.seconds)
        items = [
            ScoreItem(index=number, score=own, uniform=uniform)
            for number, (own, uniform) in enumerate(zip(answer.score, answer.uniform, strict=True))
        ]
        return ScoreResult(user=body.user, personalisation=answer.personalisation, bundle=answer.bundle, scores=items)

    @app.post("/v1/rerank", responses=_REFUSALS, tags=["score"], response_model_exclude_none=True)
    @app.post("/v2/rerank", responses=_REFUSALS, tags=["score"], response_model_exclude_none=True)
    async def rerank(body: RerankBody, response: Response, key: Annotated[KeyRecord, may_score]) -> RerankResult:
        """Documents by a user's preference, best first: the request of Cohere's and Jina's clients, with `user`."""
        documents = body.documents
        _check_count("documents", len(documents), limits.responses)
        texts = {f"body.documents.{number}": text for number, text in enumerate(documents)}
        _check_lengths(settings, {"body.query": body.query} | texts)
        answer = await service.score(key.tenant, body.user or "", body.query, documents)
        response.headers["Server-Timing"] = _timing(answer.seconds)
        order = sorted(range(len(documents)), key=lambda number: -answer.score[number])[: body.top_n]
        return RerankResult(
            id=str(uuid.uuid4()),
            results=[
                RerankItem(
                    index=number,
                    relevance_score=_sigmoid(answer.score[number]),
                    document={"text": documents[number]} if body.return_documents else None,
                )
                for number in order
            ],
            meta={
                "api_version": {"version": "1"},
                "personalisation": answer.personalisation,
                "bundle": answer.bundle,
                "user": body.user,
            },
        )

    @app.post("/v1/users/{user}/comparisons", responses=_REFUSALS, tags=["users"])
    async def add_comparisons(
        user: PathUser,
        body: ComparisonsBody,
        response: Response,
        key: Annotated[KeyRecord, may_onboard],
        idempotency_key: Annotated[
            str | None, Header(min_length=1, max_length=200, description="Sent again with the same key, choices are stored once.")
        ] = None,
    ) -> Stored:
        """Stores a user's choices, and onboards the user with all of theirs. What is answered 200 is stored for good."""
        _check_count("comparisons", len(body.comparisons), limits.comparisons)
        texts = {
            f"body.comparisons.{number}.{name}": getattr(choice, name)
            for number, choice in enumerate(body.comparisons)
            for name in ("prompt", "chosen", "rejected")
        }
        _check_lengths(settings, texts)
        choices = [TextComparison(choice.prompt, choice.chosen, choice.rejected) for choice in body.comparisons]
        stored = await service.add(key.tenant, user, choices, idempotency_key=idempotency_key)
        response.headers["Server-Timing"] = _timing(stored.seconds)
        if stored.replayed:
            response.headers["Idempotency-Replayed"] = "true"
        return Stored(
            user=user,
            version=stored.version,
            comparisons=stored.comparisons,
            personalisation=stored.personalisation,
            bundle=stored.bundle,
        )

    @app.get(
        "/v1/users/{user}/next-comparison",
        responses=_REFUSALS | {404: {"model": Failure, "description": "All questions are answered, or there are none"}},
        tags=["users"],
    )
    async def next_comparison(user: PathUser, key: Annotated[KeyRecord, may_onboard]) -> NextComparison:
        """The two responses whose comparison is expected to tell most about this user."""
        fix = "Send comparisons of other texts."
        try:
            bundle, question = await service.question(key.tenant, user)
        except NoQuestions as error:
            raise Refusal(404, "The bundle has no questions.", where=error.where, fix=fix) from None
        if question is None:
            raise Refusal(404, "All questions have been answered.", where="path.user", fix=fix)
        responses = (question.first, question.second)
        return NextComparison(user=user, prompt=question.prompt, responses=responses, bits=question.bits, bundle=bundle)

    @app.get("/v1/users/{user}", responses=_REFUSALS, tags=["users"])
    async def get_user(user: PathUser, key: Annotated[KeyRecord, may_read]) -> UserResult:
        """What is known of a user. A user whom nobody knows is `unknown`, not an error."""
        place, record = await service.user(key.tenant, user)
        return UserResult(
            user=user,
            personalisation=place.personalisation,
            version=record.version if record is not None else 0,
            comparisons=record.comparisons if record is not None else 0,
            bundle=place.bundle,
            position=place.position,
        )

    @app.delete("/v1/users/{user}", responses=_REFUSALS, tags=["users"])
    async def forget(user: PathUser, key: Annotated[KeyRecord, may_delete]) -> Forgotten:
        """Forgets a user: choices, embeddings, and their place among the bundle's users."""
        return Forgotten(user=user, comparisons=await service.forget(key.tenant, user))


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["operation"], response_class=PlainTextResponse)
    async def healthz() -> str:
        """Whether the API runs."""
        return "ok\n"

    unready = {"description": "Not now", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}}

    @app.get("/readyz", tags=["operation"], response_class=PlainTextResponse, responses={503: unready})
    async def readyz() -> str:
        """Whether a request would be answered: the store takes writes, and replicas answer."""
        await service.check()
        return "ready\n"

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Prometheus metrics of this replica of the API."""
        return PlainTextResponse(service.measures.text(), media_type="text/plain; version=0.0.4")


def _add_bundle(app: FastAPI, service: Service) -> None:
    @app.get("/v1/bundle", responses=_REFUSALS, tags=["operation"])
    async def bundle(key: Annotated[KeyRecord, _allowed(service, "score", "onboard", "admin")]) -> dict[str, Any]:
        """What the bundle is: its name, some of its users on the map, and texts to try it on."""
        return await service.describe(key.tenant)


def _add_playground(app: FastAPI) -> None:
    folder = files("penchant.runtime.serving") / "playground"

    @app.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        """The page."""
        return HTMLResponse((folder / "index.html").read_text("utf-8"))

    @app.get("/playground/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        """Its style and script."""
        kinds = {"playground.css": "text/css", "playground.js": "text/javascript"}
        if name not in kinds:
            raise Refusal(404, "There is no such file.", where=name[:80], fix="See /.")
        return Response((folder / name).read_text("utf-8"), media_type=kinds[name])


def _timing(model_seconds: float) -> str:
    """The model's share of the time, in milliseconds: what `Server-Timing` is for."""
    return f"model;dur={1000 * model_seconds:.2f}"


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
