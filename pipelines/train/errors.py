"""What keeps a training from beginning, or ends it from outside."""

from __future__ import annotations

from vlmodel.errors import ExpectedError


class RunInUseError(ExpectedError, RuntimeError):
    """Another job writes into the run's folder; the message says which, and what to do."""


class LostWorkerError(ExpectedError, RuntimeError):
    """Workers died, or answered no more, more often than the run may start anew; the message says what to do."""
