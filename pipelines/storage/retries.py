"""Retries reads and writes after transient errors, and converts errors of storage clients to OSErrors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from pipelines.errors import DataError

T = TypeVar("T")

ATTEMPTS = 5
FIRST_DELAY_S = 0.2
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors after which there is no retry."""
# fsspec's HTTP and S3 clients, not all of whose errors are OSErrors.
_CLIENTS = ("aiohttp", "aiobotocore", "botocore")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")


class AccessError(PermissionError, DataError):
    """The storage denies access."""


class RefusedError(OSError):
    """A server refuses a request, which a retry would not change."""


def call_with_retries(operation: Callable[[], T]) -> T:
    """Call ``operation()`` up to ``ATTEMPTS`` times if transient errors occur, with a delay that doubles.

    Raises:
        OSError: the last error, when every attempt failed, or the first that is not transient.
    """

    def call_and_convert_errors() -> T:
        try:
            return operation()
        except Exception as error:
            os_error = to_os_error(error)
            if os_error is None or os_error is error:
                raise
            raise os_error from error

    retry = Retrying(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(FIRST_DELAY_S),
        reraise=True,
    )
    return retry(call_and_convert_errors)


def to_os_error(error: Exception) -> OSError | None:
    """Convert an error to an OSError; None if it is not an error of reading or writing."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and _client_library(cause) == "aiohttp":
        # fsspec's HTTP client raises FileNotFoundError whatever the reason that it could not get a file's size.
        return error if getattr(cause, "status", None) in (404, 410) else to_os_error(cause)
    if isinstance(error, OSError):
        return error
    if _client_library(error) is None:
        return None
    message = f"{type(error).__name__}: {error}"
    status = getattr(error, "status", None)  # of an HTTP response
    if status in (401, 403) or type(error).__name__ in _NO_CREDENTIALS:
        return PermissionError(message)
    if status == 501 or (status is not None and 400 <= status < 500 and status not in (408, 425, 429)):
        return RefusedError(message)
    return OSError(message)


def _client_library(error: Exception) -> str | None:
    package = type(error).__module__.partition(".")[0]
    return package if package in _CLIENTS else None


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, (*PERMANENT, RefusedError))
