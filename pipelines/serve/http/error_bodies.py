"""Builds the bodies of error responses: this service's own, and OpenAI's for the routes of OpenAI's API.

https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import json
from typing import Any

from pipelines.serve.errors import ApiError

OPENAI_PATHS = ("/v1/chat/completions", "/v1/embeddings", "/v1/models")
"""Addresses of OpenAI's API, and what is below them."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def status_and_body(error: ApiError, path: str) -> tuple[int, bytes]:
    """Return the HTTP status and the JSON of the response to a request that failed.

    Args:
        path: of the request.
    """
    if any(path == one or path.startswith(f"{one}/") for one in OPENAI_PATHS):
        # OpenAI's clients take 400 for what no retry mends.
        status = 400 if error.status in (415, 422) else error.status
        return status, json.dumps(openai_error(error)).encode()
    return error.status, error_body(error)


def error_body(error: ApiError) -> bytes:
    """Build the JSON of ``openapi.ErrorBody``."""
    return json.dumps({"error": {"code": error.code, "message": error.message}}).encode()


def openai_error(error: ApiError) -> dict[str, Any]:
    """Describe the error in the format of OpenAI's API."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
