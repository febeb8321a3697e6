"""Settings of the index: what makes a sample valid, and how many faults are tolerated."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pipelines.data.index.validate import PILLOW_MAX_PIXELS, Verify
from pipelines.data.tars.sample import Modality, TextLimits
from pipelines.data.tars.shards import Split
from vlmodel.config import MAY_CHANGE, Section

Patterns = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""One shell pattern, or several."""


class IndexConfig(Section):
    """What makes a sample valid, and how many faults are tolerated."""

    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the train samples that becomes the validation split, where no tar is of split val. They are chosen by
    the hash of the group that KEY.json names (source.group of an import), so that no group is in both splits, or else
    by that of the key."""
    max_quarantine_fraction: float = Field(0.01, ge=0, le=1)
    """The index job fails above this share of faults."""
    max_quarantine_run: int = Field(100, ge=1)
    """The index job fails where this many samples in a row are faulty."""
    max_pixels: int = Field(100_000_000, ge=1, le=PILLOW_MAX_PIXELS)
    """Images of more pixels are left out; no more are decoded."""
    max_image_bytes: int = Field(256 << 20, ge=1)
    """Image files of more bytes are left out."""
    max_letters: int = Field(TextLimits.letters, ge=1)
    """Samples with a caption, question or answer of more letters are left out."""
    max_texts: int = Field(TextLimits.texts, ge=1)
    """Samples with more captions and questions, or a question with more answers, are left out."""
    force: bool = Field(False, json_schema_extra=MAY_CHANGE)
    """Read every tar again, also those whose size and modification time are unchanged."""
    report: bool = Field(False, json_schema_extra=MAY_CHANGE)
    """Also write _index/quarantine.html: what was left out, counted and shown."""
    verify: Verify = "decode"
    """"decode" decodes every image; "header" reads its header and checks that its end is there, at the disk's speed."""
    splits: dict[Split, Patterns] = {}
    """Which tars are of which split, by shell patterns of their names, as in {val = "held-out-*"}. Other tars are
    assigned by a word of their names: train, val, validation, valid, dev, test, eval, ... (train-000.tar,
    coco-val2017.tar)."""
    members: Modality = "pairs"
    """What a sample is: "pairs" (an image with its texts), or "texts" or "images" alone; the other kind is ignored
    where there is some."""

    @property
    def scan(self) -> dict[str, Any]:
        """The settings that decide which samples are valid."""
        names = {"max_pixels", "max_image_bytes", "max_letters", "max_texts", "verify", "members"}
        return self.model_dump(mode="json", include=names)
