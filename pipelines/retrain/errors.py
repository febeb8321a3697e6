"""Errors of retraining."""

from __future__ import annotations

from vlmodel.errors import ExpectedError


class RetrainError(ExpectedError):
    """A retraining cycle cannot begin or continue. The message says why, and the remedy."""


class RetrainingBusyError(RetrainError):
    """Another process runs a retraining cycle."""
