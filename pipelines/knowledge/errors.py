"""Errors of the store of facts."""

from __future__ import annotations

from pipelines.errors import DataError


class KnowledgeError(DataError):
    """The store of facts cannot be used; the message says what is wrong and what to do."""


class UnknownFactError(KnowledgeError):
    """The fact store contains no fact with this id."""


class FactRefusedError(KnowledgeError):
    """The store does not accept a fact; ``fault`` is the typed reason."""

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault
