"""Errors of this room."""


class RetrainError(Exception):
    """A cycle that cannot begin or go on; the message says why and what to do."""


class BusyError(RetrainError):
    """Another cycle is at work."""
