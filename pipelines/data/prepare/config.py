"""Settings of the job ``prepare``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipelines.data.prepare.hashing import MAX_DISTANCE
from vlmodel.config import ConfigSection
from vlmodel.locations import Location


class PrepareConfig(ConfigSection):
    """Settings of which samples of ``data.tars`` are dropped, how images are stored, and where the tars are written."""

    out: Location = "build/prepared"
    """Folder or URI of the prepared tars; empty, absent, or of the same preparation, which is continued."""

    min_side: int = Field(0, ge=0)
    """Images whose shorter side has fewer pixels are dropped."""
    max_aspect: float = Field(0.0, ge=0)
    """Images whose longer side is more than this many times the shorter one are dropped; 0 allows all."""
    min_chars: int = Field(0, ge=0)
    """Captions and questions of fewer characters are left out; a sample is dropped where no text is left."""
    max_chars: int = Field(0, ge=0)
    """Captions and questions of more characters are left out, as above; 0 allows all."""
    languages: list[str] = []
    """ISO 639 codes, as ["en", "de"]: samples whose texts together are in none of them are dropped; [] allows all.
    Two or three words can be of many languages: check the report."""
    duplicates: bool = True
    """Of training samples with the same image (and the same further inputs) the first is kept, with the texts of all;
    none where val or test has it. Val and test are kept whole."""
    near_duplicates: int = Field(0, ge=0, le=MAX_DISTANCE)
    """Training images are dropped whose perceptual hash of 64 bits differs in at most this many bits from that of an
    earlier training image, or of any image of val or test. 4 finds other sizes and qualities of a picture; 0 drops
    none."""

    longest_side: int = Field(0, ge=0)
    """Larger images are resized to this many pixels on their longer side; 0 resizes none."""
    shortest_side: int = Field(0, ge=0)
    """Larger images are resized to this many pixels on their shorter side; 0 resizes none."""
    format: Literal["same", "jpeg", "webp"] = "same"
    """Format of the written images. "same" keeps JPEG and WebP, and makes PNG of other images that are resized. An
    image that has the format and needs no resizing keeps its bytes."""
    quality: int = Field(90, ge=1, le=100)
    """Of JPEG and WebP images that are encoded anew."""

    samples_per_shard: int = Field(1000, ge=1)
    """Samples of a tar, about, which also has at most about 256 MB; the tars of a split have similar sizes."""

    @model_validator(mode="after")
    def _check_limits_leave_samples(self) -> PrepareConfig:
        if 0 < self.max_aspect < 1:
            raise ValueError(
                f"max_aspect = {self.max_aspect} is below that of a square; give at least 1, or 0 to allow all"
            )
        if 0 < self.max_chars < self.min_chars:
            raise ValueError(f"max_chars = {self.max_chars} is below min_chars = {self.min_chars}; no text fits both")
        return self
