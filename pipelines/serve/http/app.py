"""Builds the HTTP application: routes, middleware, error responses. It knows only the interface ``Service``, and no
model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError, internal_error, invalid_conversation_error
from pipelines.serve.facts import UpdatableFactStore
from pipelines.serve.http.error_bodies import status_and_body
from pipelines.serve.http.middleware import (
    ERROR_CODE,
    Authentication,
    BodyLimit,
    ConcurrencyLimit,
    RateLimit,
    RequestMetrics,
    RequestRefusedError,
    path_of,
)
from pipelines.serve.http.openapi import add_own_examples_to_openapi
from pipelines.serve.http.routes import about, chat, embeddings, feedback, operations, page
from pipelines.serve.http.routes import facts as facts_routes
from pipelines.serve.http.routes import search as search_routes
from pipelines.serve.http.token_bucket import TokenBuckets
from pipelines.serve.search import UpdatableSearch
from pipelines.serve.service import Service, ServiceMetrics
from vlmodel.conversation import ConversationError

MAX_HELD_BYTES = 256 << 20
"""Of all request bodies that a replica holds at once, or ``max_body_bytes`` if that is more."""

_HTTP_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def create_app(
    service: Service,
    config: ServeConfig,
    key_hashes: Sequence[str] = (),
    metrics: ServiceMetrics | None = None,
    facts: UpdatableFactStore | None = None,
    fact_key_hashes: Sequence[str] = (),
    search: UpdatableSearch | None = None,
) -> FastAPI:
    """Create the ASGI application that answers by ``service``.

    All tasks have their routes whatever the model, as a model that is swapped in later may bring other tasks; a task
    that the model lacks answers 404 "no_such_task".

    Args:
        service: may have no model yet; requests then get 503.
        key_hashes: SHA-256 hashes (hex) of the API keys; without any, only this machine is answered.
        metrics: counts requests.
        facts: the store that the service answers with; None without one.
        fact_key_hashes: of the keys with which facts can be edited; without any, they cannot.
        search: among vectors of the model; None without any.
    """
    app = FastAPI(
        title="Vision and language",
        description="Ask questions about a picture, have it described, find the texts that belong to it.",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    _add_error_handlers(app)
    for routes in (operations, chat, embeddings, feedback):
        app.include_router(routes.router(service, config))
    app.include_router(search_routes.router(service, config, search))
    app.include_router(about.router(service, config, search))
    app.include_router(facts_routes.router(facts, config, fact_key_hashes))
    app.include_router(page.router())
    documented = app.openapi

    def openapi() -> dict[str, Any]:
        return add_own_examples_to_openapi(
            documented(), service.model, service.examples if config.shows_examples else ()
        )

    app.openapi = openapi  # type: ignore[method-assign]

    # The layer that is added last is the outermost.
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes, max_held_bytes=MAX_HELD_BYTES)
    app.add_middleware(ConcurrencyLimit, max_in_flight=config.max_in_flight)
    if config.requests_per_minute:
        # Serve spreads requests over the replicas, which do not share their counts.
        per_minute = config.requests_per_minute / config.replicas
        app.add_middleware(RateLimit, limit=TokenBuckets(per_minute, burst=math.ceil(per_minute / 2)))
    app.add_middleware(Authentication, key_hashes=key_hashes, config=config)
    if config.allowed_origins:
        # Outside authentication: a browser asks without a key whether it may send one.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "x-api-key", "x-fact-key", "content-type"],
        )

    def version() -> str:
        return service.model.version if service.model else "none"

    app.add_middleware(RequestMetrics, metrics=metrics or ServiceMetrics(), version=version)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    def respond_with_error(request: Request, error: ApiError) -> Response:
        request.scope[ERROR_CODE] = error.code
        status, body = status_and_body(error, path_of(request.scope))
        return Response(body, status, dict(error.headers), "application/json")

    @app.exception_handler(ApiError)
    async def handle_api_error(request: Request, error: ApiError) -> Response:
        return respond_with_error(request, error)

    @app.exception_handler(ConversationError)
    async def handle_invalid_conversation(request: Request, error: ConversationError) -> Response:
        return respond_with_error(request, invalid_conversation_error(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # Of routes whose fields FastAPI reads. What was sent is not quoted.
        lines = [f"{'.'.join(map(str, one['loc'][1:]))[:80]}: {one['msg'][:200]}" for one in error.errors()[:3]]
        return respond_with_error(request, ApiError(422, "invalid_request", "; ".join(lines)))

    @app.exception_handler(HTTPException)
    async def handle_http_error(request: Request, error: HTTPException) -> Response:
        if isinstance(error, RequestRefusedError):
            return respond_with_error(request, error.error)
        messages = {
            404: f"there is nothing at {request.url.path[:200]!r}; see /docs for what there is",
            405: f"{request.method} is not possible at {request.url.path[:200]!r}; see /docs",
        }
        code = _HTTP_CODES.get(error.status_code, "handle_http_error")
        message = messages.get(error.status_code, str(error.detail))
        return respond_with_error(request, ApiError(error.status_code, code, message, dict(error.headers or {})))

    @app.exception_handler(ClientDisconnect)
    async def handle_client_disconnect(request: Request, error: ClientDisconnect) -> Response:
        # Nobody reads this; it keeps a disconnect from being logged as a fault. 499 is nginx's status for it.
        return respond_with_error(
            request, ApiError(499, "handle_client_disconnect", "the client closed the connection")
        )

    @app.exception_handler(Exception)
    async def handle_unexpected_error(request: Request, error: Exception) -> Response:
        return respond_with_error(request, internal_error())
