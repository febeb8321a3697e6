"""A small client of the service."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from pipelines.serve.errors import ServeError
from pipelines.serve.schema.vqa import VQAResponse


def ask(
    address: str,
    image: bytes,
    questions: Sequence[str],
    *,
    top_k: int = 5,
    attention: bool = False,
    api_key: str | None = None,
    timeout_s: float = 30.0,
    client: httpx.Client | None = None,
) -> VQAResponse:
    """Ask the service at ``address`` about one encoded image.

    Args:
        client: reuse this one's connections; without it, each call opens its own.

    Raises:
        ServeError: the service cannot be reached, or refuses; the message holds its reason.
    """
    form: dict[str, str | list[str]] = {
        "question": list(questions),
        "top_k": str(top_k),
        "attention": str(attention).lower(),
    }
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        # trust_env would send a request for this machine through a proxy meant for others.
        own = client or httpx.Client(trust_env=False)
        try:
            response = own.post(
                f"{address}/v1/vqa", data=form, files={"image": ("image", image)}, headers=headers, timeout=timeout_s
            )
        finally:
            if client is None:
                own.close()
    except httpx.HTTPError as error:
        raise ServeError(
            f"no answer from {address} ({error or type(error).__name__}); is the service running?"
        ) from None
    if response.status_code != 200:
        raise ServeError(f"{address} answered {response.status_code}: {_reason(response)}")
    return VQAResponse.model_validate_json(response.content)


def is_ready(address: str, timeout_s: float = 2.0) -> bool:
    """Whether the service at ``address`` has its model loaded."""
    try:
        return httpx.get(f"{address}/readyz", timeout=timeout_s, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _reason(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return f"{error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
