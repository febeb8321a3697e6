"""Changes training images by RandAugment, TrivialAugment, colour jitter and random erasing.

The operations and their strengths are torchvision's (``transforms.v2``). Its classes are not used: they draw from
torch's global generator, which all threads of a process share; here an image's changes follow from its sample alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import Field

from vlmodel.config import ConfigSection
from vlmodel.images.resize import PADDING

if TYPE_CHECKING:
    from torch import Tensor

Policy = Literal["none", "randaugment", "trivialaugment"]
LEVELS = 31
"""Strengths that a policy knows, from none to its greatest."""
_ERASED_ASPECT = (0.3, 3.3)
_TRIES = 10


class ColorJitterConfig(ConfigSection):
    """Random changes of colours, as torchvision's ColorJitter makes them, in a random order."""

    brightness: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Brightness is multiplied by a factor that differs from 1 by at most this."""
    contrast: float = Field(0.0, ge=0, allow_inf_nan=False)
    """The same for contrast."""
    saturation: float = Field(0.0, ge=0, allow_inf_nan=False)
    """The same for saturation."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Hues are turned by at most this share of the whole circle: colours get other names."""

    @property
    def active(self) -> bool:
        """Whether colours are changed at all."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))


class Operation(NamedTuple):
    """One operation of a policy.

    Attributes:
        name: torchvision's.
        strength: see ``strength_of``.
    """

    name: str
    strength: float


class _Strengths(NamedTuple):
    """The greatest strengths of a policy: of shear, of translation in pixels of a side, of rotation in degrees, of the
    factors of colours, and of the bits that "Posterize" takes away.
    """

    shear: float
    translation: Callable[[int], float]
    rotation: float
    factor: float
    bits: int


_POLICIES: Mapping[Policy, _Strengths] = {
    "randaugment": _Strengths(0.3, lambda side: 150 / 331 * side, 30.0, 0.9, 4),
    "trivialaugment": _Strengths(0.99, lambda side: 32.0, 135.0, 0.99, 6),
}
_FACTORS = ("Brightness", "Color", "Contrast", "Sharpness")
_SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *_FACTORS)
OPERATIONS = ("Identity", *_SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")


def draw_operations(
    policy: Policy, count: int, magnitude: int, height: int, width: int, rng: np.random.Generator
) -> list[Operation]:
    """Draw the operations for an image of this size.

    Args:
        count, magnitude: of RandAugment (Cubuk et al. 2020, arXiv:1909.13719): how many operations, one after the
            other, and how strong, from 0 to 30. TrivialAugment (Müller & Hutter 2021, arXiv:2103.10158) makes one, of
            a random strength.
    """
    if policy == "none":
        return []
    trivial, drawn = policy == "trivialaugment", []
    for _ in range(1 if trivial else count):
        name = OPERATIONS[rng.integers(len(OPERATIONS))]
        strength = strength_of(policy, name, int(rng.integers(LEVELS)) if trivial else magnitude, height, width)
        drawn.append(Operation(name, -strength if name in _SIGNED and rng.random() < 0.5 else strength))
    return drawn


def strength_of(policy: Policy, name: str, level: int, height: int, width: int) -> float:
    """Compute the strength of an operation at a level from 0 to 30: degrees, pixels, tangent of the shear, difference
    of a factor from 1, bits that are kept, or share of the range above which pixels are inverted ("Solarize"). 0 for
    operations that have none.
    """
    most, share = _POLICIES[policy], level / (LEVELS - 1)
    if name.startswith("Shear"):
        return most.shear * share
    if name.startswith("Translate"):
        return most.translation(width if name == "TranslateX" else height) * share
    if name == "Rotate":
        return most.rotation * share
    if name in _FACTORS:
        return most.factor * share
    if name == "Posterize":
        return float(round(8 - most.bits * share))
    return 1 - share if name == "Solarize" else 0.0


def apply_operation(image_CHW: Tensor, operation: Operation) -> Tensor:
    """Change a uint8 image by one operation; pixels into which it moves nothing become grey."""
    from torchvision.transforms.v2 import functional as tv

    name, strength = operation
    fill = [float(PADDING)] * 3
    if name.startswith("Shear"):
        degrees = math.degrees(math.atan(strength))
        shear = [degrees, 0.0] if name == "ShearX" else [0.0, degrees]
        return tv.affine(image_CHW, 0.0, [0, 0], 1.0, shear, fill=fill, center=[0, 0])
    if name.startswith("Translate"):
        move = [int(strength), 0] if name == "TranslateX" else [0, int(strength)]
        return tv.affine(image_CHW, 0.0, move, 1.0, [0.0, 0.0], fill=fill)
    if name == "Rotate":
        return tv.rotate(image_CHW, strength, fill=fill)
    changes: Mapping[str, Callable[[], Tensor]] = {
        "Identity": lambda: image_CHW,
        "Brightness": lambda: tv.adjust_brightness(image_CHW, 1 + strength),
        "Color": lambda: tv.adjust_saturation(image_CHW, 1 + strength),
        "Contrast": lambda: tv.adjust_contrast(image_CHW, 1 + strength),
        "Sharpness": lambda: tv.adjust_sharpness(image_CHW, 1 + strength),
        "Posterize": lambda: tv.posterize(image_CHW, int(strength)),
        "Solarize": lambda: tv.solarize(image_CHW, 255 * strength),
        "AutoContrast": lambda: tv.autocontrast(image_CHW),
        "Equalize": lambda: tv.equalize(image_CHW),
    }
    return changes[name]()


def jitter_colors(image_CHW: Tensor, config: ColorJitterConfig, rng: np.random.Generator) -> Tensor:
    """Change the colours of a uint8 image at random."""
    from torchvision.transforms.v2 import functional as tv

    changes = [
        (tv.adjust_brightness, config.brightness), (tv.adjust_contrast, config.contrast),
        (tv.adjust_saturation, config.saturation), (tv.adjust_hue, config.hue),
    ]  # fmt: skip
    for number in rng.permutation(len(changes)).tolist():
        change, most = changes[number]
        if not most:
            continue
        least, greatest = (-most, most) if change is tv.adjust_hue else (max(0.0, 1 - most), 1 + most)
        image_CHW = change(image_CHW, float(rng.uniform(least, greatest)))
    return image_CHW


def draw_erased_region(
    height: int, width: int, max_area: float, rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """Draw the region that random erasing (Zhong et al. 2020, arXiv:1708.04896) takes away: (first row, first column,
    height, width), of 2 % of the image's area to ``max_area``; None where none of the drawn shapes fits, as in
    torchvision.
    """
    narrowest, widest = (math.log(aspect) for aspect in _ERASED_ASPECT)
    for _ in range(_TRIES):
        area = height * width * rng.uniform(min(0.02, max_area), max_area)
        aspect = math.exp(rng.uniform(narrowest, widest))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            return int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns
    return None
