"""The HTTP application: its routes, the layers around them, and its errors. It knows a service, and no model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError, internal
from pipelines.serve.http.middleware import (
    ERROR_CODE,
    Authentication,
    BodyLimit,
    ConcurrencyLimit,
    RateLimit,
    Refused,
    RequestMetrics,
    error_body,
)
from pipelines.serve.http.routes import about, caption, embed, feedback, match, page, vqa
from pipelines.serve.http.token_bucket import TokenBuckets
from pipelines.serve.service import Metrics, NoMetrics, Service

_HTTP_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def create_app(
    service: Service, config: ServeConfig, key_hashes: Sequence[str] = (), metrics: Metrics | None = None
) -> FastAPI:
    """The ASGI application over ``service``.

    The routes of all tasks are there, whatever the model: one that it lacks answers 404 "no_such_task", and a model
    that is swapped in may bring it.

    Args:
        service: does the tasks; it may have no model yet, then requests get 503.
        config: limits and times.
        key_hashes: SHA-256 hashes (hex) of the API keys; when empty, only this machine may ask.
        metrics: where requests are counted.
    """
    app = FastAPI(
        title="Vision and language",
        description="Ask questions about a picture, have it described, find the texts that belong to it.",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    _add_errors(app)
    for routes in (vqa, caption, match, embed, feedback, about):
        app.include_router(routes.router(service, config))
    app.include_router(page.router())

    # Added last is outermost: observe, then who, then how often, then how many at once, then how long.
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes, max_held_bytes=config.max_held_bytes)
    app.add_middleware(ConcurrencyLimit, max_in_flight=config.max_in_flight)
    if config.requests_per_minute:
        # Serve spreads requests over the replicas, which know nothing of one another's.
        burst = math.ceil(config.request_burst / config.replicas)
        app.add_middleware(RateLimit, limit=TokenBuckets(config.requests_per_minute / config.replicas, burst))
    app.add_middleware(Authentication, key_hashes=key_hashes, config=config)
    if config.allowed_origins:
        # Before the keys: browsers ask without one whether they may send one.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "x-api-key", "content-type"],
        )
    app.add_middleware(RequestMetrics, metrics=metrics or NoMetrics(), version=lambda: _version(service))
    return app


def _version(service: Service) -> str:
    return service.model.version if service.model else "none"


def _add_errors(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError) -> Response:
        request.scope[ERROR_CODE] = error.code
        return Response(error_body(error), error.status, dict(error.headers), "application/json")

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if isinstance(error, Refused):
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
        return answer(request, internal())
