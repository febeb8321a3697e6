"""Errors of registered models."""

from __future__ import annotations

from vlmodel.errors import ExpectedError


class RegistryError(ExpectedError, RuntimeError):
    """The registry has no such model or version. The message names the remedy."""


class ChampionChangedError(RegistryError):
    """The champion is no longer the one that a candidate was compared with: another promotion came first."""


class ArtifactError(ExpectedError, RuntimeError):
    """The files of a stored model have changed. The message names them and the remedy."""


class SmokeError(ExpectedError, RuntimeError):
    """A stored model does not load or does not answer in a fresh process."""
