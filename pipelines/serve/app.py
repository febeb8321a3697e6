"""The HTTP application: routes, their documentation and their errors. It knows a service, and no model."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError
from pipelines.serve.guard import ERROR_CODE, STARTED, Access, Admission, BodyLimit, BodyTooLarge, Observe, error_body
from pipelines.serve.schema import (
    AttentionMap,
    ErrorBody,
    Health,
    Limits,
    ModelDescription,
    ModelVersion,
    QuestionAnswers,
    RankedAnswer,
    VQARequest,
    VQAResponse,
)
from pipelines.serve.service import Answered, Metrics, ModelInfo, NoMetrics, Service

_PAGE = Path(__file__).parent / "page"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

_HTTP_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}

# The errors of the schema that have a name of their own; any other is an "invalid_request".
_SCHEMA_CODES = {"bad_base64", "empty_image", "empty_question", "no_question"}


def create_app(
    service: Service, config: ServeConfig, key_hashes: Sequence[str] = (), metrics: Metrics | None = None
) -> FastAPI:
    """The ASGI application over ``service``.

    Args:
        service: answers the questions; it may have no model yet, then requests get 503.
        config: limits and times.
        key_hashes: SHA-256 hashes (hex) of the API keys; when empty, only this machine may ask.
        metrics: where requests are counted.
    """
    app = FastAPI(
        title="Visual question answering",
        description="Ask questions about a picture and get ranked answers with probabilities.",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    _add_errors(app)
    _add_page(app)
    _add_health(app, service, config)
    _add_vqa(app, service, config)

    # Added last is outermost: observe, then who, then how many, then how long.
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    app.add_middleware(Admission, max_in_flight=config.max_in_flight)
    app.add_middleware(Access, key_hashes=key_hashes)
    app.add_middleware(Observe, metrics=metrics or NoMetrics(), version=lambda: _version(service))
    return app


def _version(service: Service) -> str:
    return service.model.version if service.model else "none"


def _add_vqa(app: FastAPI, service: Service, config: ServeConfig) -> None:
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": text}
        for status, text in {
            400: "The body is not JSON, or not a form.",
            401: "The API key is missing or wrong.",
            403: "From another machine or under another name, where there are no API keys.",
            408: "The request took too long to arrive.",
            413: "The body or the image is too large.",
            415: "Neither application/json nor multipart/form-data.",
            422: "The image or a field cannot be used.",
            429: "Too many requests at once; see Retry-After.",
            503: "No model is loaded yet.",
            504: "The answer took too long.",
        }.items()
    }

    @app.post(
        "/v1/vqa",
        response_model=VQAResponse,
        responses=errors,
        openapi_extra={"requestBody": _request_body()},
        summary="Ask about a picture",
        tags=["answers"],
    )
    async def ask(request: Request) -> Response:
        """Send a picture with one or more questions, as JSON with the image in base64 or as a multipart form."""
        deadline = asyncio.get_running_loop().time() + config.request_timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                asked = await _read(request)
        except TimeoutError:
            message = f"the request did not arrive within {config.request_timeout_s:g} s; send a smaller image"
            raise ApiError(408, "slow_request", message, {"connection": "close"}) from None
        questions = _checked_questions(asked, config)
        try:
            async with asyncio.timeout_at(deadline):
                answered = await service.answer(asked.image, questions, asked.top_k, asked.attention)
        except TimeoutError:
            message = f"no answer within {config.request_timeout_s:g} s; try again, or ask fewer questions at once"
            raise ApiError(504, "timeout", message) from None
        elapsed_s = time.perf_counter() - request.scope[STARTED]
        return Response(
            _response(questions, answered, elapsed_s).model_dump_json(),
            media_type="application/json",
            headers={"server-timing": _server_timing(answered.stages_s, elapsed_s), "cache-control": "no-store"},
        )


def _request_body() -> dict[str, Any]:
    """OpenAPI of the two ways to send a request; FastAPI itself can declare only one of them for a route."""
    schema = VQARequest.model_json_schema()
    examples = {f"example {i}": {"value": value} for i, value in enumerate(schema.pop("examples"), start=1)}
    properties = schema["properties"]
    form = {
        "type": "object",
        "required": ["image", "question"],
        "properties": {
            "image": {"type": "string", "format": "binary", "description": "The image file."},
            "question": {
                "type": "array",
                "items": {"type": "string"},
                "description": "The question; repeat the field to ask several.",
            },
            "top_k": properties["top_k"],
            "attention": properties["attention"],
        },
    }
    return {
        "required": True,
        "content": {
            "application/json": {"schema": schema, "examples": examples},
            "multipart/form-data": {"schema": form},
        },
    }


async def _read(request: Request) -> VQARequest:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if media_type == "application/json":
            return VQARequest.model_validate_json(await request.body(), strict=True)
        if media_type == "multipart/form-data":
            return VQARequest.model_validate(await _read_form(request))
    except ValidationError as error:
        raise _explain(error) from None
    except UnicodeError:  # of the charset that a form names, which Starlette hands to Python's codecs
        raise ApiError(400, "bad_request", "the form's charset cannot be decoded; send it in UTF-8") from None
    raise ApiError(
        415,
        "unsupported_media_type",
        f"content type {media_type[:80]!r} is not supported; send application/json or multipart/form-data",
    )


async def _read_form(request: Request) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    async with request.form(max_files=1, max_fields=64) as form:
        for name in form:
            values = [await value.read() if isinstance(value, UploadFile) else value for value in form.getlist(name)]
            tree[name] = values if len(values) > 1 or name == "questions" else values[0]
    if isinstance(tree.get("question"), list):
        tree["questions"] = tree.pop("question")
    return tree


def _explain(error: ValidationError) -> ApiError:
    """The first few problems in one message; what the client sent is quoted only where it is short."""
    details = error.errors(include_url=False, include_context=False)
    first = details[0]["type"]
    if first == "json_invalid":
        return ApiError(400, "bad_json", f"the body is not JSON ({details[0]['msg']})"[:300])
    fields = ", ".join(VQARequest.model_fields)
    lines = []
    for detail in details[:3]:
        where = ".".join(str(step) for step in detail["loc"])[:80]
        if detail["type"] == "extra_forbidden":
            lines.append(f"field '{where}' is unknown; the fields are {fields}")
            continue
        if detail["type"] == "missing":
            lines.append(f"field '{where}' is required")
            continue
        if detail["type"] == "model_type":
            lines.append(f"the body is JSON, but not an object; send one with the fields {fields}")
            continue
        given = f" (given {detail['input']!r})" if isinstance(detail["input"], int | float) else ""
        lines.append(f"{where}: {detail['msg']}{given}" if where else f"{detail['msg']}{given}")
    return ApiError(422, first if first in _SCHEMA_CODES else "invalid_request", "; ".join(lines))


def _checked_questions(asked: VQARequest, config: ServeConfig) -> tuple[str, ...]:
    questions = asked.asked()
    if len(questions) > config.max_questions:
        message = f"{len(questions)} questions in one request; ask at most {config.max_questions}"
        raise ApiError(422, "too_many_questions", message)
    longest = max(len(question) for question in questions)
    if longest > config.max_question_chars:
        message = f"a question has {longest} characters; ask in at most {config.max_question_chars}"
        raise ApiError(422, "question_too_long", message)
    return questions


def _response(questions: Sequence[str], answered: Answered, elapsed_s: float) -> VQAResponse:
    answers = []
    for question, prediction in zip(questions, answered.predictions, strict=True):
        ranked = [
            RankedAnswer(answer=answer, probability=min(1.0, max(0.0, float(probability))))
            for answer, probability in prediction.answers
        ]
        attention = None
        if prediction.attention_HW is not None:
            rows, columns = prediction.attention_HW.shape
            weights = prediction.attention_HW.astype(float).round(6).tolist()
            attention = AttentionMap(rows=rows, columns=columns, weights=weights)
        answers.append(QuestionAnswers(question=question, answers=ranked, attention=attention))
    model = ModelVersion(name=answered.model.name, version=answered.model.version)
    return VQAResponse(answers=answers, model=model, latency_ms=round(elapsed_s * 1000, 2))


def _server_timing(stages_s: Mapping[str, float], elapsed_s: float) -> str:
    """https://www.w3.org/TR/server-timing/, in milliseconds."""
    return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in {**stages_s, "total": elapsed_s}.items())


def _add_health(app: FastAPI, service: Service, config: ServeConfig) -> None:
    def model() -> ModelInfo:
        if service.model is None:
            raise ApiError(503, "not_ready", "the model is still loading; try again shortly", {"retry-after": "1"})
        return service.model

    unready: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody, "description": "No model is loaded yet."}}

    @app.get("/healthz", summary="Is the process alive?", tags=["service"])
    async def healthz() -> Health:
        return Health()

    @app.get("/readyz", summary="Is the model loaded and warm?", tags=["service"], responses=unready)
    async def readyz() -> Health:
        model()
        return Health()

    @app.get("/v1/model", summary="The model in use", tags=["service"], responses=unready)
    async def describe() -> ModelDescription:
        info = model()
        limits = Limits(
            body_bytes=config.max_body_bytes,
            questions=config.max_questions,
            question_chars=config.max_question_chars,
        )
        return ModelDescription(
            name=info.name,
            version=info.version,
            labels=info.labels,
            image_size=info.image_size,
            resize=info.resize,
            limits=limits,
        )


def _add_page(app: FastAPI) -> None:
    files = {path.name: path.read_bytes() for path in sorted(_PAGE.iterdir()) if path.suffix in _MEDIA_TYPES}
    etags = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, content in files.items()}

    def send(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404)
        headers = {"etag": etags[name], "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == etags[name]:
            return Response(status_code=304, headers=headers)
        return Response(files[name], media_type=_MEDIA_TYPES[Path(name).suffix], headers=headers)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return send("index.html", request)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return send("docs.html", request)

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str, request: Request) -> Response:
        return send(name, request)

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return RedirectResponse("page/icon.svg")


def _add_errors(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError) -> Response:
        request.scope[ERROR_CODE] = error.code
        return Response(error_body(error), error.status, dict(error.headers), "application/json")

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if isinstance(error, BodyTooLarge):
            return answer(request, error.error)
        messages = {
            404: f"there is nothing at {request.url.path[:200]!r}; see /docs for what there is",
            405: f"{request.method} is not possible at {request.url.path[:200]!r}; see /docs",
        }
        code = _HTTP_CODES.get(error.status_code, "http_error")
        message = messages.get(error.status_code, str(error.detail))
        return answer(request, ApiError(error.status_code, code, message, dict(error.headers or {})))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        # Nobody reads this; it keeps a hang-up from being logged as a fault. 499 is nginx's status for it.
        return answer(request, ApiError(499, "client_gone", "the client closed the connection"))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        message = "something failed inside the service; its log has the details"
        return answer(request, ApiError(500, "internal", message))
