"""JPEGs decoded by a GPU (nvJPEG, through torchvision), where the cores of its node cannot keep up with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg

from vlmodel.image_header import is_complete, read_header
from vlmodel.images import Resize, center_square, is_plain_jpeg

_FRAMES = (0xC0, 0xC1, 0xC2)
"""Frames of JPEG that nvJPEG decodes: none of arithmetic code."""

log = logging.getLogger(__name__)


def decode_jpegs(
    files: Sequence[bytes],
    size: int,
    resize: Resize,
    max_pixels: int,
    device: torch.device,
    out: Sequence[NDArray[np.uint8]],
) -> NDArray[np.bool_]:
    """Fill in the images of the plain, whole and upright JPEGs among the files; which ones were.

    All others are for ``images.decode`` to judge, and so is everything where nothing can be decoded here: it never
    raises for a file. Its pixels are not to the bit those of the CPU: nvJPEG interpolates colours in its own way, and
    large images are decoded whole.

    Args:
        device: a CUDA device; any other decodes with libjpeg, which is for tests.
        out: a (size, size, 3) uint8 place for each file.
    """
    done = np.array([_is_able(data, max_pixels) for data in files], np.bool_)
    chosen = np.flatnonzero(done).tolist()
    if not chosen:
        return done
    try:
        with _beside_the_training(device):
            encoded = [torch.frombuffer(bytearray(files[n]), dtype=torch.uint8) for n in chosen]
            # torchcodec is to take its place; as long as torchvision has it, it is one dependency less.
            images = decode_jpeg(encoded, ImageReadMode.RGB, device)
            small_BCHW = torch.stack([_resized(image, size, resize) for image in images])
            pixels_BHWC = small_BCHW.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    except RuntimeError as error:  # one broken file fails all of a call
        log.warning("the GPU decoded none of %d images, the CPU does: %s", len(chosen), error)
        return np.zeros(len(files), np.bool_)
    for n, pixels_HWC in zip(chosen, pixels_BHWC, strict=True):
        out[n][:] = pixels_HWC
    return done


@contextmanager
def _beside_the_training(device: torch.device) -> Iterator[None]:
    """A stream of its own: the default one is the training step's, and would be waited for."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield


def _is_able(data: bytes, max_pixels: int) -> bool:
    """Whether the GPU may decode it: nvJPEG takes a file that is cut off for one with a grey end."""
    header = read_header(data)
    if header is None or header.size is None or not is_plain_jpeg(header):
        return False
    height, width = header.size
    if height * width > max_pixels or header.orientation != 1 or header.frame not in _FRAMES:
        return False
    try:
        colours = simplejpeg.decode_jpeg_header(data, strict=False)[2]
    except ValueError:
        return False
    return colours in ("YCbCr", "Gray") and is_complete(data, header)


def _resized(image_CHW: Tensor, size: int, resize: Resize) -> Tensor:
    if resize == "crop":
        top, left, side = center_square(image_CHW.shape[1], image_CHW.shape[2])
        image_CHW = image_CHW[:, top : top + side, left : left + side]
    # No uint8 on a GPU yet.
    image_BCHW = F.interpolate(image_CHW[None].float(), (size, size), mode="bilinear", antialias=True)
    return image_BCHW[0].round().clamp(0, 255).to(torch.uint8)
