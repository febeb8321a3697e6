"""The error of searches."""

from __future__ import annotations

from vlmodel.errors import ExpectedError


class SearchError(ExpectedError):
    """Some trainings of a search failed, or none can be compared; the message lists them with their reasons."""
