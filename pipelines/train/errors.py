"""What ends a training from outside."""

from __future__ import annotations


class LostWorkerError(RuntimeError):
    """Workers died, or answered no more, more often than the run may start anew; the message says what to do."""
