"""Errors of the pipeline, and how a job finds and prints the error that is meant for the user."""

from __future__ import annotations

import errno
import sqlite3

from vlmodel.errors import ExpectedError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DataError(ExpectedError):
    """A data set cannot be used; the message says what is wrong and what to do."""


def find_expected_cause(error: BaseException | None) -> BaseException | None:
    """Find the ``ExpectedError`` or the full disk behind an error, also within the errors that Ray wraps around those
    of its workers; None if there is none, so that the traceback is needed.
    """
    seen: set[int] = set()
    pending = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        # Ray's copy of an error is of the same type, and its text is a traceback.
        inner = getattr(current, "cause", None)
        if isinstance(inner, BaseException) and not isinstance(inner, type(current)):
            current = inner
        if isinstance(current, ExpectedError) or _is_disk_full(current):
            return current
        failures = getattr(current, "worker_failures", None)
        pending += [current.__cause__, current.__context__, getattr(current, "cause", None)]
        pending += list(failures.values()) if isinstance(failures, dict) else []
    return None


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in _FULL


def message_for_user(error: BaseException) -> str:
    """Return the message for the user about an error that ``find_expected_cause`` found."""
    remedy = "; make room and start the job again: it continues from the last whole checkpoint or shard"
    # Ray Data adds how often it tried, and how to have it try again.
    text = str(error).partition("\nFailed to apply UDF transform after")[0]
    lines = f"{text}{remedy if _is_disk_full(error) else ''}".split("\n")
    return "\n".join(escape_unprintable(line) for line in lines)  # names of files and keys may hold control characters


def escape_unprintable(text: str) -> str:
    """Escape the characters of a text that a terminal or a log cannot print, above all control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
