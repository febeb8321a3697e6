"""Settings of the index: which samples are valid, and how many faults are tolerated."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pipelines.data.tars.inputs import PAIRS, InputNames
from pipelines.data.tars.sample import TextLimits
from pipelines.data.tars.shards import Split
from vlmodel.config import MAY_CHANGE, ConfigSection
from vlmodel.media.base import CheckLimits, Verify
from vlmodel.media.image import PILLOW_MAX_PIXELS

Patterns = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""One shell pattern, or several."""


class IndexConfig(ConfigSection):
    """Settings of which samples are valid, and of how many faults are tolerated."""

    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the train samples that becomes the validation split, where no tar is of split val. They are chosen by
    the hash of the group that KEY.json names (source.group of an import), so that no group is in both splits, or else
    by that of the key."""
    max_quarantine_fraction: float = Field(0.01, ge=0, le=1)
    """The index job fails above this share of faults."""
    max_quarantine_run: int = Field(100, ge=1)
    """The index job fails where this many samples in a row are faulty."""
    max_bytes: int = Field(CheckLimits().max_bytes, ge=1)
    """Samples with an image or another input of more bytes are left out; texts have limits of their own."""
    max_pixels: int = Field(CheckLimits().max_pixels, ge=1, le=PILLOW_MAX_PIXELS)
    """Images of more pixels, and videos whose frames have more, are left out; no more are decoded."""
    max_values: int = Field(CheckLimits().max_values, ge=1)
    """Series and sounds of more numbers (time steps times channels) are left out."""
    max_seconds: float = Field(CheckLimits().max_seconds, gt=0)
    """Sounds and videos of more seconds are left out."""
    max_channels: int = Field(CheckLimits().max_channels, ge=1)
    """Sounds of more channels are left out."""
    max_frames: int = Field(CheckLimits().max_frames, ge=1)
    """Videos of more frames are left out."""
    max_letters: int = Field(TextLimits.letters, ge=1)
    """Samples with a caption, question or answer of more letters are left out."""
    max_texts: int = Field(TextLimits.texts, ge=1)
    """Samples with more captions, questions and replies, or a question with more answers, are left out."""
    force: bool = Field(False, json_schema_extra=MAY_CHANGE)
    """Read every tar again, also those whose size and modification time are unchanged."""
    report: bool = Field(False, json_schema_extra=MAY_CHANGE)
    """Also write _index/quarantine.html: what was left out, counted and shown."""
    verify: Verify = "decode"
    """"decode" decodes every input; "header" reads what the header says and checks that the end is there, at the disk's
    speed."""
    splits: dict[Split, Patterns] = {}
    """Which tars are of which split, by shell patterns of their names, as in {val = "held-out-*"}. Other tars are
    assigned by a word of their names: train, val, validation, valid, dev, test, eval, ... (train-000.tar,
    coco-val2017.tar)."""
    inputs: InputNames = PAIRS
    """What a sample must have, as ["image", "text"], ["text"] or ["image", "imu", "text?"]; those with ? may be
    missing. KEY.jpg is the image, KEY.json, KEY.txt and KEY.cls (a class) are the text, KEY.wav, KEY.flac or KEY.mp3 is
    the audio, KEY.npy or KEY.csv is the series, and KEY.NAME.EXT is the input NAME. Other members are ignored and
    counted."""

    @property
    def validity_settings(self) -> dict[str, Any]:
        """Return the settings that decide which samples are valid."""
        names = {*CheckLimits.model_fields, "max_letters", "max_texts", "inputs"}
        return self.model_dump(mode="json", include=names)
