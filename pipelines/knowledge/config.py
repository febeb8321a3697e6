"""Settings of the store of facts."""

from __future__ import annotations

from pydantic import Field

from vlmodel.config import MAY_CHANGE, ConfigSection, part_field
from vlmodel.locations import Location


class KnowledgeConfig(ConfigSection):
    """Settings of the store of facts, which the knowledge job builds, and training and serving read."""

    store: Location = Field("", json_schema_extra=MAY_CHANGE)
    """Folder or URI of the store; "" for none."""
    version: int = Field(0, ge=0)
    """The version that training and evaluation read; 0 takes the newest, and the run then keeps to it."""
    encoder: Location = Field("", json_schema_extra=MAY_CHANGE)
    """Folder of the frozen sentence encoder in transformers' format, by whose vectors facts are found, such as
    all-MiniLM-L6-v2; "" builds a store without vectors, whose facts are found by names only."""
    source: part_field("pipelines.knowledge.sources", "tsv") = Field(  # type: ignore[valid-type]
        {}, validate_default=True, json_schema_extra=MAY_CHANGE
    )
    """What the knowledge job reads."""
    batch: int = Field(2048, ge=1, json_schema_extra=MAY_CHANGE)
    """Facts that are encoded and written at a time; a build that was stopped continues after the last ones."""
    workers: int = Field(1, ge=1, json_schema_extra=MAY_CHANGE)
    """Copies of the encoder that a build runs, on Ray."""
    exact: int = Field(1_000_000, ge=0, json_schema_extra=MAY_CHANGE)
    """Up to so many facts the search is exact; above, it is usearch's, and may miss some."""
