"""Random changes of training images, seeded per (seed, epoch, sample), so they too survive restarts and resizes."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from vlmodel.config import Section


class AugmentConfig(Section):
    """None by default: a mirrored image can make "left of" false."""

    flip: float = Field(0.0, ge=0, le=1)
    """Probability of a horizontal mirror image."""
    min_area: float = Field(1.0, gt=0, le=1)
    """Smallest share of the image's area that a random crop keeps; 1 crops nothing."""

    @property
    def active(self) -> bool:
        """Whether anything is ever changed."""
        return self.flip > 0 or self.min_area < 1


def augment(pixels_HWC: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """A changed copy of the uint8 image, of the same size."""
    # Here, as tasks that augment nothing then start without torch, which takes seconds.
    import torch
    from torchvision.transforms.v2 import functional as tv

    image = torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1)
    if config.min_area < 1:
        height, width = image.shape[-2:]
        scale = float(np.sqrt(rng.uniform(config.min_area, 1.0)))
        h, w = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        image = tv.resized_crop(image, top, left, h, w, [height, width], antialias=True)
    if rng.random() < config.flip:
        image = tv.horizontal_flip(image)
    changed: np.ndarray = image.permute(1, 2, 0).numpy()
    return changed
