"""The base of all errors that a user is meant to read."""

from __future__ import annotations


class ExpectedError(Exception):
    """An error whose message says what is wrong and what to do; a job prints it without a traceback."""
