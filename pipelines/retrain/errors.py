"""Errors of retraining."""

from __future__ import annotations

from vlmodel.errors import ExpectedError


class RetrainError(ExpectedError):
    """A cycle cannot begin or continue. The message says why, and the remedy."""


class BusyError(RetrainError):
    """Another process runs a cycle."""
