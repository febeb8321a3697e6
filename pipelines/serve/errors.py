"""Errors of the service: one for who starts it, one for who calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class ServeError(RuntimeError):
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
