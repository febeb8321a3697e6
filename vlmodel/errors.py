"""The base class of all errors that are meant for the user."""

from __future__ import annotations


class ExpectedError(Exception):
    """An error whose message tells the user what is wrong and what to do; a job prints it without a traceback."""
