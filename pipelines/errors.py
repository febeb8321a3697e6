"""Errors of the pipeline, and how a job finds and prints the one that a user is meant to read."""

from __future__ import annotations

import errno

from vlmodel.errors import ExpectedError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DataError(ExpectedError):
    """A data set that cannot be used; the message says what is wrong and what to do."""


def expected_cause(error: BaseException | None) -> BaseException | None:
    """An error that needs no traceback (one of ours, or a full disk), or that is inside those that Ray wraps around
    what its workers raise.
    """
    seen: set[int] = set()
    pending = [error]
    while pending:
        here = pending.pop()
        if here is None or id(here) in seen:
            continue
        seen.add(id(here))
        # Ray's copy of an error is of the same type, and its text is a traceback.
        inner = getattr(here, "cause", None)
        if isinstance(inner, BaseException) and not isinstance(inner, type(here)):
            here = inner
        if isinstance(here, ExpectedError) or _is_full(here):
            return here
        failures = getattr(here, "worker_failures", None)
        pending += [here.__cause__, here.__context__, getattr(here, "cause", None)]
        pending += list(failures.values()) if isinstance(failures, dict) else []
    return None


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


def message_of(error: BaseException) -> str:
    """What a user is told of an error that ``expected_cause`` gave."""
    remedy = "; make room and start the job again: it continues from the last whole checkpoint or shard"
    # Ray Data adds how often it tried, and how to have it try again.
    text = str(error).partition("\nFailed to apply UDF transform after")[0]
    lines = f"{text}{remedy if _is_full(error) else ''}".split("\n")
    return "\n".join(printable(line) for line in lines)  # names of files and keys may hold control characters


def printable(text: str) -> str:
    """Text for a terminal or a log: what would not be printed, control characters above all, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
