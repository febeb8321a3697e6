"""Settings of the model registry."""

from __future__ import annotations

from pydantic import Field

from vlmodel.config import Section


class RegistryConfig(Section):
    """Registering and promoting models."""

    margin: float = Field(0.0, ge=0, le=1)
    """By how much accuracy a candidate may be worse than the champion and still be promoted."""
    smoke_test: bool = True
    """Load each model in a fresh process, from its stored files alone, before it is registered."""
    cache: str = ""
    """Local folder of downloaded models; empty: models in the storage folder."""
