"""Errors of a training."""

from __future__ import annotations

from vlmodel.errors import ExpectedError


class RunInUseError(ExpectedError, RuntimeError):
    """Another job writes into the run's folder. The message says which, and the remedy."""


class LostWorkerError(ExpectedError, RuntimeError):
    """Workers died or stopped answering more often than they may be restarted. The message says the remedy."""
