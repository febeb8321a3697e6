"""Errors of this room."""


class SearchError(Exception):
    """Some of many trainings failed, or none can be compared; the message lists them with their reasons."""
