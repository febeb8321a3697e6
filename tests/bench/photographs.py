"""JPEGs that cost what photographs cost."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG that costs what a photograph costs: smooth structure at several scales, and some grain."""
    image = np.zeros((375, 500, 3), np.float32)
    for cells in (4, 12, 40, 120):
        noise = rng.normal(0, 60 / cells**0.4, (cells, cells, 3)).astype(np.float32)
        layers = [Image.fromarray(noise[..., c]).resize((500, 375), Image.Resampling.BICUBIC) for c in range(3)]
        image += np.stack([np.asarray(layer) for layer in layers], axis=-1)
    image += rng.normal(0, 4, image.shape)
    out = io.BytesIO()
    Image.fromarray((image + 128).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()
