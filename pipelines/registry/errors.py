"""Errors of registered models."""

from __future__ import annotations

from vlmodel.errors import ExpectedError


class RegistryError(ExpectedError, RuntimeError):
    """A model or version that the registry does not have. The message names the remedy."""


class ChampionChangedError(RegistryError):
    """The champion is no longer the one that a candidate was compared with: another promotion came first."""


class ArtifactError(ExpectedError, RuntimeError):
    """A stored model whose files have changed. The message names them and the remedy."""


class SmokeError(ExpectedError, RuntimeError):
    """A stored model that does not load or answer in a fresh process."""
