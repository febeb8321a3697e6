"""The error for stored vectors."""

from __future__ import annotations

from pipelines.errors import DataError


class EmbeddingsError(DataError):
    """Stored vectors cannot be used; the message says what is wrong and what to do."""
