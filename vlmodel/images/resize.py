"""From decoded pixels to an upright square. torch is imported on first use: processes that read headers stay small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Resize = Literal["squash", "crop"]
"""How an image becomes square: "squash" distorts it, "crop" cuts out its center."""

_INVERSE = {6: 8, 8: 6}
"""Orientations that undo others; those not named undo themselves."""


def turn_upright(pixels_HWC: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The upright image, by EXIF's orientation from 1 to 8: a view."""
    if orientation in (3, 4, 6, 7):
        pixels_HWC = pixels_HWC[::-1]
    if orientation in (2, 3, 7, 8):
        pixels_HWC = pixels_HWC[:, ::-1]
    return pixels_HWC.transpose(1, 0, 2) if orientation >= 5 else pixels_HWC


def center_square(height: int, width: int) -> tuple[int, int, int]:
    """First row, first column and side of the largest square in the center."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side


def resize_to_square(
    pixels_HWC: NDArray[np.uint8],
    size: int,
    resize: Resize,
    out_HWC: NDArray[np.uint8] | None = None,
    orientation: int = 1,
) -> NDArray[np.uint8]:
    """The upright image as (size, size, 3).

    torch's antialiased bilinear filter gives Pillow's pixels but for rounding, several times as fast.

    Args:
        out_HWC: memory for the result; new if not given.
        orientation: EXIF's, of the given pixels.
    """
    if orientation != 1:
        # The small image is turned, as a filter is slow on pixels whose neighbours are far apart in memory.
        if resize == "crop":
            upright_HWC = turn_upright(pixels_HWC, orientation)
            top, left, side = center_square(*upright_HWC.shape[:2])
            square_HWC = upright_HWC[top : top + side, left : left + side]
            pixels_HWC = turn_upright(square_HWC, _INVERSE.get(orientation, orientation))
        small_HWC = turn_upright(resize_to_square(pixels_HWC, size, "squash"), orientation)
        if out_HWC is None:
            return np.ascontiguousarray(small_HWC)
        out_HWC[:] = small_HWC
        return out_HWC
    height, width = pixels_HWC.shape[:2]
    if resize == "crop" and height != width:
        top, left, side = center_square(height, width)
        pixels_HWC = pixels_HWC[top : top + side, left : left + side]
    if out_HWC is None:
        out_HWC = np.empty((size, size, 3), np.uint8)
    if pixels_HWC.shape[:2] == (size, size):
        out_HWC[:] = pixels_HWC
        return out_HWC
    import torch

    # interpolate()'s own operator writes into given memory, and not plane by plane. Permuted from BHWC, torch sees
    # that the channels are contiguous, for which its filter is fast.
    pixels_BHWC = torch.from_numpy(np.require(pixels_HWC[None], requirements=["C", "W"]))
    out_BHWC = torch.from_numpy(out_HWC[None])
    torch.ops.aten._upsample_bilinear2d_aa.out(
        pixels_BHWC.permute(0, 3, 1, 2), [size, size], False, out=out_BHWC.permute(0, 3, 1, 2)
    )
    return out_HWC
