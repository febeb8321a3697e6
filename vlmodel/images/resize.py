"""Turns decoded pixels into an upright image of the model's size. torch is imported on first use, so processes that
read only headers stay small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Resize = Literal["squash", "crop", "pad"]
"""How an image gets another shape: "squash" distorts it, "crop" cuts out its center, "pad" adds bars of grey."""
Interpolation = Literal["bilinear", "bicubic"]
"""The filter, antialiased."""

PADDING = 128
"""Grey of the bars, in all three channels: near zero once it is normalised, whatever the encoder."""
_INVERSE = {6: 8, 8: 6}
"""Orientations that undo others; those not named undo themselves."""


@dataclass(frozen=True)
class ImageResizing:
    """Settings of how an image of any shape becomes one of the model's size: crop or padding, and filter.

    Attributes:
        size: height and width, in pixels.
        resize: see ``Resize``.
        crop: share of height and width (of the largest region of the size's shape, with "crop") around the center that
            is kept.
        interpolation: see ``Interpolation``.
    """

    size: tuple[int, int]
    resize: Resize = "squash"
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"

    def region_to_keep(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The region of an image that is kept: (first row, first column, height, width)."""
        rows, columns = self._largest_region(height, width) if self.resize == "crop" else (height, width)
        rows, columns = (max(1, round(length * self.crop)) for length in (rows, columns))
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    def region_to_fill(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The region that an image of this shape fills: (first row, first column, height, width)."""
        whole_rows, whole_columns = self.size
        if self.resize != "pad":
            return 0, 0, whole_rows, whole_columns
        # In whole numbers, as a quotient of shapes that are equal may not be 1 of floats.
        if height * whole_columns >= width * whole_rows:
            rows, columns = whole_rows, max(1, round(whole_rows * width / height))
        else:
            rows, columns = max(1, round(whole_columns * height / width)), whole_columns
        return (whole_rows - rows) // 2, (whole_columns - columns) // 2, rows, columns

    def min_source_size(self, orientation: int = 1) -> tuple[int, int]:
        """The height and width that an image must have, as it is stored, so that resizing does not enlarge it.

        Args:
            orientation: EXIF's, by which the stored image is turned.
        """
        height, width = (math.ceil(length / self.crop) for length in self.size)
        return (width, height) if orientation >= 5 else (height, width)

    def _largest_region(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of the largest region of an image that has the shape of ``size``."""
        rows, columns = self.size
        if height * columns >= width * rows:
            return min(height, round(width * rows / columns)), width
        return height, min(width, round(height * columns / rows))


def rotate_upright(pixels_HWC: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Rotate and mirror an image by its EXIF orientation, from 1 to 8; returns a view."""
    if orientation in (3, 4, 6, 7):
        pixels_HWC = pixels_HWC[::-1]
    if orientation in (2, 3, 7, 8):
        pixels_HWC = pixels_HWC[:, ::-1]
    return pixels_HWC.transpose(1, 0, 2) if orientation >= 5 else pixels_HWC


def resize_image(
    pixels_HWC: NDArray[np.uint8],
    resizing: ImageResizing,
    out_HWC: NDArray[np.uint8] | None = None,
    orientation: int = 1,
) -> NDArray[np.uint8]:
    """Rotate an image upright and resize it to the size of ``resizing``.

    torch's antialiased filters give Pillow's pixels but for rounding, several times as fast.

    Args:
        out_HWC: memory for the result; new if not given.
        orientation: EXIF's, of the given pixels.
    """
    if out_HWC is None:
        out_HWC = np.empty((*resizing.size, 3), np.uint8)
    upright_HWC = rotate_upright(pixels_HWC, orientation)
    top, left, height, width = resizing.region_to_keep(*upright_HWC.shape[:2])
    upright_HWC = upright_HWC[top : top + height, left : left + width]
    top, left, height, width = resizing.region_to_fill(height, width)
    shown_HWC = out_HWC[top : top + height, left : left + width]
    if shown_HWC.shape != out_HWC.shape:
        out_HWC[:] = PADDING
    if upright_HWC.shape == shown_HWC.shape:
        shown_HWC[:] = upright_HWC
    elif orientation == 1 and shown_HWC.shape == out_HWC.shape:
        _filter_image(upright_HWC, out_HWC, resizing.interpolation)
    else:
        # The small image is turned, as a filter is slow on pixels whose neighbours are far apart in memory.
        stored_HWC = rotate_upright(upright_HWC, _INVERSE.get(orientation, orientation))
        small_HWC = np.empty((width, height, 3) if orientation >= 5 else (height, width, 3), np.uint8)
        _filter_image(stored_HWC, small_HWC, resizing.interpolation)
        shown_HWC[:] = rotate_upright(small_HWC, orientation)
    return out_HWC


def _filter_image(pixels_HWC: NDArray[np.uint8], out_HWC: NDArray[np.uint8], interpolation: Interpolation) -> None:
    """Resize a whole image into the contiguous array ``out_HWC``."""
    import torch

    # interpolate()'s own operator writes into given memory, and not plane by plane. Permuted from BHWC, torch sees
    # that the channels are contiguous, for which its filter is fast.
    pixels_BHWC = torch.from_numpy(np.require(pixels_HWC[None], requirements=["C", "W"]))
    out_BHWC = torch.from_numpy(out_HWC[None])
    aten = torch.ops.aten
    resize = aten._upsample_bilinear2d_aa if interpolation == "bilinear" else aten._upsample_bicubic2d_aa
    resize.out(pixels_BHWC.permute(0, 3, 1, 2), list(out_HWC.shape[:2]), False, out=out_BHWC.permute(0, 3, 1, 2))
