"""Reading and writing that is tried again after a transient error; and which errors are none.

Other clients' errors become those of the standard library.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pipelines.errors import DataError

T = TypeVar("T")

ATTEMPTS = 5
FIRST_DELAY_S = 0.2
# Trying again does not make a file appear or a permission granted.
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# The clients under fsspec's HTTP and S3 do not derive all of their errors from OSError.
_CLIENTS = ("aiohttp", "aiobotocore", "botocore")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")


class AccessError(PermissionError, DataError):
    """The store refuses: to who handles a file, a file's error; to the user, what is wrong and what to do."""


class RefusedError(OSError):
    """An answer of the server that asking again would not change."""


def retrying(operation: Callable[[], T]) -> T:
    """``operation()``, tried again after a transient error, each time after twice the delay.

    Raises:
        OSError: the last error, when every attempt failed, or the first that is not transient.
    """
    for attempt in range(ATTEMPTS):
        try:
            return operation()
        except Exception as error:
            known = file_error(error)
            if known is None or isinstance(known, (*PERMANENT, RefusedError)) or attempt == ATTEMPTS - 1:
                if known is None or known is error:
                    raise
                raise known from error
            time.sleep(FIRST_DELAY_S * 2**attempt)
    raise AssertionError("unreachable")


def file_error(error: Exception) -> OSError | None:
    """The error in the terms of the standard library; None where it is not one of reading and writing."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and _client(cause) == "aiohttp":
        # fsspec calls a file missing whose size it could not ask for, whatever the reason.
        return error if getattr(cause, "status", None) in (404, 410) else file_error(cause)
    if isinstance(error, OSError):
        return error
    if _client(error) is None:
        return None
    message = f"{type(error).__name__}: {error}"
    status = getattr(error, "status", None)  # of an HTTP response
    if status in (401, 403) or type(error).__name__ in _NO_CREDENTIALS:
        return PermissionError(message)
    if status == 501 or (status is not None and 400 <= status < 500 and status not in (408, 425, 429)):
        return RefusedError(message)
    return OSError(message)


def _client(error: Exception) -> str | None:
    package = type(error).__module__.partition(".")[0]
    return package if package in _CLIENTS else None
