"""Errors of the service: one for those who operate it, one for those who call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlmodel.conversation import ConversationError
from vlmodel.errors import ExpectedError


class ServeError(ExpectedError, RuntimeError):
    """The service cannot start, stop or be reached. The message names the cause and the remedy."""


@dataclass
class ApiError(Exception):
    """A request gets an error response.

    Attributes:
        status: HTTP status.
        code: stable name of the error, for programs.
        message: what is wrong and what to do about it, for people.
        headers: extra response headers.
        param: the field of the request that is wrong, where it is one.
    """

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)
    param: str | None = None

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"


def not_ready_error() -> ApiError:
    """Create the error for a request that arrives before a model is loaded."""
    return ApiError(503, "not_ready", "the model is still loading; try again shortly", {"retry-after": "1"})


def unknown_task_error(task: str, model: str, tasks: Sequence[str]) -> ApiError:
    """Create the error 404 for a task that the loaded model does not have."""
    routes = ", ".join(f"/v1/{name}" for name in tasks)
    return ApiError(404, "no_such_task", f"the model {model!r} cannot do {task!r}; it answers at {routes}")


def invalid_conversation_error(error: ConversationError) -> ApiError:
    """Create the error for a question or a conversation that a language model cannot answer, such as one longer than
    its context.
    """
    return ApiError(422, "invalid_conversation", str(error), param="messages")


def internal_error() -> ApiError:
    """Create the error for a fault of the service; the details are in the log, and not for the caller."""
    return ApiError(500, "internal", "something failed inside the service; its log has the details")
