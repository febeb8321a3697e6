"""Errors of the store of facts."""

from __future__ import annotations

from pipelines.errors import DataError


class KnowledgeError(DataError):
    """A store of facts that cannot be used; the message says what is wrong and what to do."""


class UnknownFactError(KnowledgeError):
    """The store has no fact of an id."""


class FactRefusedError(KnowledgeError):
    """A fact that the store does not take; ``fault`` is the typed reason."""

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault
