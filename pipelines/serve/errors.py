"""Errors of the service: one for who starts it, one for who calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlmodel.errors import ExpectedError


class ServeError(ExpectedError, RuntimeError):
    """The service cannot start, stop or be reached. The message names the thing and the remedy."""


@dataclass
class ApiError(Exception):
    """A request that gets an error answer.

    Attributes:
        status: HTTP status.
        code: stable name of the error, for programs.
        message: what is wrong and what to do about it, for people.
        headers: extra response headers.
    """

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"


def not_ready() -> ApiError:
    """There is no model yet."""
    return ApiError(503, "not_ready", "the model is still loading; try again shortly", {"retry-after": "1"})


def lacks_task(task: str, model: str, tasks: Sequence[str]) -> ApiError:
    """The model cannot do what it was asked: 404, as for any address that has nothing behind it."""
    has = ", ".join(f"/v1/{name}" for name in tasks)
    return ApiError(404, "no_such_task", f"the model {model!r} cannot do {task!r}; it answers at {has}")


def internal() -> ApiError:
    """A fault, of which the caller is told nothing but that it was one."""
    return ApiError(500, "internal", "something failed inside the service; its log has the details")
