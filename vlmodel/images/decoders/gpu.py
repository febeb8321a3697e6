"""Decodes JPEGs on a GPU (nvJPEG, through torchvision), for nodes whose CPUs cannot decode fast enough."""

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

from vlmodel.images.header import is_complete_image, is_plain_jpeg, read_image_header
from vlmodel.images.resize import PADDING, ImageResizing

_FRAMES = (0xC0, 0xC1, 0xC2)
"""Frames of JPEG that nvJPEG decodes: those without arithmetic coding."""

log = logging.getLogger(__name__)


def decode_jpegs_on_gpu(
    files: Sequence[bytes],
    resizing: ImageResizing,
    max_pixels: int,
    device: torch.device,
    out: Sequence[NDArray[np.uint8]],
) -> NDArray[np.bool_]:
    """Decode those of the files that are plain, complete and upright JPEGs, and return which ones they are.

    The CPU decodes the others, and all of them if the GPU fails: no file raises an error here. Pixels differ slightly
    from the CPU's: nvJPEG interpolates colours differently, and decodes large images at their full size.

    Args:
        device: a CUDA device; any other uses libjpeg, for tests.
        out: memory of (height, width, 3) uint8 for each file.
    """
    done = np.array([_can_decode_on_gpu(data, max_pixels) for data in files], np.bool_)
    chosen = np.flatnonzero(done).tolist()
    if not chosen:
        return done
    try:
        with _separate_cuda_stream(device):
            encoded = [torch.frombuffer(bytearray(files[n]), dtype=torch.uint8) for n in chosen]
            # torchcodec will replace torchvision's decoder; until then it would be one more dependency.
            images = decode_jpeg(encoded, ImageReadMode.RGB, device)
            small_BCHW = torch.stack([_resize_image(image, resizing) for image in images])
            pixels_BHWC = small_BCHW.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    except RuntimeError as error:  # one broken file fails the whole call
        log.warning("the GPU decoded none of %d images, the CPU does: %s", len(chosen), error)
        return np.zeros(len(files), np.bool_)
    for n, pixels_HWC in zip(chosen, pixels_BHWC, strict=True):
        out[n][:] = pixels_HWC
    return done


@contextmanager
def _separate_cuda_stream(device: torch.device) -> Iterator[None]:
    """Return a CUDA stream beside the default one, so that decoding does not wait for the training step."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield


def _can_decode_on_gpu(data: bytes, max_pixels: int) -> bool:
    """Whether nvJPEG decodes the file correctly. Truncated files are refused: nvJPEG would decode them without an
    error, with grey at the end.
    """
    header = read_image_header(data)
    if header is None or header.size is None or not is_plain_jpeg(header):
        return False
    height, width = header.size
    if height * width > max_pixels or header.orientation != 1 or header.frame not in _FRAMES:
        return False
    try:
        colours = simplejpeg.decode_jpeg_header(data, strict=False)[2]
    except ValueError:
        return False
    return colours in ("YCbCr", "Gray") and is_complete_image(data, header)


def _resize_image(image_CHW: Tensor, resizing: ImageResizing) -> Tensor:
    top, left, height, width = resizing.region_to_keep(image_CHW.shape[1], image_CHW.shape[2])
    image_CHW = image_CHW[:, top : top + height, left : left + width]
    top, left, height, width = resizing.region_to_fill(height, width)
    # CUDA's antialiased filter takes no uint8.
    small_BCHW = F.interpolate(image_CHW[None].float(), (height, width), mode=resizing.interpolation, antialias=True)
    out_CHW = torch.full((3, *resizing.size), PADDING, dtype=torch.uint8, device=image_CHW.device)
    out_CHW[:, top : top + height, left : left + width] = small_BCHW[0].round().clamp(0, 255).to(torch.uint8)
    return out_CHW
