"""What one request asks, whatever the task, so that it can be asked of another model too."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.serve.service import Service, ServiceResult, Task


@dataclass(frozen=True)
class ServiceRequest:
    """One request.

    Attributes:
        image: encoded; None where texts alone are embedded.
        texts: questions or texts; none for a caption.
    """

    task: Task
    image: bytes | None
    texts: tuple[str, ...] = ()
    top_k: int = 1
    attention: bool = False

    @cached_property
    def image_sha256(self) -> str:
        """Of the image, by which corrections name it too; "" where there is none."""
        return "" if self.image is None else hashlib.sha256(self.image).hexdigest()


async def dispatch(service: Service, request: ServiceRequest) -> ServiceResult[Any]:
    """Ask a service.

    Raises:
        ApiError: see ``Service``.
    """
    if request.task == "embed":
        return await service.embed(request.image, request.texts)
    assert request.image is not None  # the other routes require one
    if request.task == "vqa":
        return await service.answer(request.image, request.texts, request.top_k, request.attention)
    if request.task == "caption":
        return await service.caption(request.image, request.top_k, request.attention)
    return await service.match(request.image, request.texts)
