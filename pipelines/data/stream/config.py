"""Settings of the stream. What they configure imports Ray; reading them must not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from vlmodel.config import ConfigSection
from vlmodel.locations import Location

SUBFOLDER = "raylm-pixels"


class PixelCacheConfig(ConfigSection):
    """Settings of the cache of decoded images on local disks, which is read from the second epoch on."""

    keep: Literal["auto", "always", "never"] = "auto"
    """"auto" caches them where there is more than one epoch and reading them back is at least three times as fast as
    decoding, as measured at the start."""
    folder: Location = ""
    """Folder on each node's own disk. It may hold other things: the cache uses its subfolder raylm-pixels, which no
    other user may read, and touches nothing else. "" is raylm/pixels in $XDG_CACHE_HOME or ~/.cache."""
    max_gb: float = Field(20.0, gt=0)
    """Most that all cached pixels of a node take."""

    @property
    def root(self) -> Path:
        if self.folder:
            return Path(self.folder).expanduser().absolute() / SUBFOLDER
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raylm" / "pixels"


class StreamConfig(ConfigSection):
    """Settings of how batches are made ahead of the consumer."""

    decoding: Literal["threads", "processes", "gpu"] = "threads"
    """How images are decoded. "processes" beside each consumer suit nodes with many cores, where threads wait for
    Python's lock; each takes some 300 MB and its part of an index. "gpu" decodes JPEGs on the GPU of each training
    worker (nvJPEG), without the pixel cache: several cores' work for a little of the GPU's time. The CPU decodes what
    the GPU cannot, and all where there is none. Validation always uses the CPU, as does serving."""
    workers: int = Field(2, ge=1)
    """Threads or processes of each consumer that read and decode images."""
    tasks: int = Field(1, ge=1)
    """Ray tasks that make batches at one time, for each consumer."""
    memory_mb: int = Field(256, ge=1)
    """Memory for prefetched batches, for each consumer."""
    cache: PixelCacheConfig = PixelCacheConfig()

    @model_validator(mode="after")
    def _check_decoding_settings(self) -> Self:
        if self.decoding == "gpu" and self.cache.keep == "always":
            raise ValueError(
                "decoding = 'gpu' with cache.keep = 'always': cached pixels are the CPU's; set one of them"
            )
        return self
