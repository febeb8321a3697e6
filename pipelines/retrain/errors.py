"""Errors of this room."""

from __future__ import annotations

from vlmodel.errors import ExpectedError


class RetrainError(ExpectedError):
    """A cycle that cannot begin or go on; the message says why and what to do."""


class BusyError(RetrainError):
    """Another cycle is at work."""
