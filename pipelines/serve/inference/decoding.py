"""Decodes images in threads beside the event loop, limited by the number of pixels at a time.

A file of a few kilobytes may hold an image of 100 million pixels; its header says how many. A large image waits for
pixels of the budget; small ones need none.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError
from vlmodel.images.decoders.cpu import count_decoded_pixels
from vlmodel.images.errors import ImageError
from vlmodel.images.pillow import WEB_FORMATS
from vlmodel.media.base import MediumError
from vlmodel.processor import VLProcessor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SMALL_PIXELS = 1_000_000
"""Images of up to this size need no budget: as many are decoded at once as there are threads."""
_MIN_LIMIT = 16_000_000
_TIMES_INPUT = 64

_Error: TypeAlias = tuple[int, str, str]
_ERRORS: dict[str, _Error] = {
    "truncated": (422, "truncated_image", "the image file ends early; send it whole"),
    "undecodable": (422, "undecodable_image", "the image cannot be decoded; send a JPEG, PNG, WebP, BMP or GIF file"),
    "too_large": (413, "image_too_large", "the image has too many pixels; send a smaller one"),
}


def decoding_pixel_limit(config: ServeConfig, image_size: tuple[int, int]) -> int:
    """The limit of pixels that are decoded at a time: the setting, or 64 times the pixels of the model's input, and at
    least 16 million.
    """
    return config.max_image_pixels or max(_MIN_LIMIT, _TIMES_INPUT * math.prod(image_size))


class ImageDecoder:
    """Decodes images in a pool of threads."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._budget = PixelBudget()

    async def decode(self, processor: VLProcessor, image: bytes, limit: int) -> NDArray[np.uint8]:
        """Decode an image to the array that the model takes.

        Args:
            limit: most pixels of one image, and of all large ones that are decoded at one time.

        Raises:
            ApiError: it cannot be decoded, or has too many pixels.
        """
        loop = asyncio.get_running_loop()
        decoded = await loop.run_in_executor(self._pool, _decode_if_few_pixels, processor, image, limit)
        if isinstance(decoded, int):
            pixels = decoded
            await self._budget.acquire(pixels, limit)
            future = self._pool.submit(_decode_or_error, processor, image)

            def release_pixels(_: object) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(self._budget.release, pixels)

            # When the decoding ends, which may be long after a caller left.
            future.add_done_callback(release_pixels)
            decoded = await asyncio.wrap_future(future)
        if isinstance(decoded, tuple):
            raise ApiError(*decoded)
        return decoded

    async def decode_input(self, processor: VLProcessor, name: str, data: bytes) -> Mapping[str, NDArray[Any]]:
        """Decode an additional input to its arrays; its number of bytes limits the memory that this takes.

        Raises:
            ApiError: it cannot be decoded.
        """
        loop = asyncio.get_running_loop()
        decoded = await loop.run_in_executor(self._pool, _decode_input_or_error, processor, name, data)
        if isinstance(decoded, tuple):
            raise ApiError(*decoded)
        return decoded

    def close(self) -> None:
        """Cancel waiting work, and end the threads after their current work."""
        self._pool.shutdown(cancel_futures=True)


class PixelBudget:
    """A semaphore that counts pixels and grants them in the order of requests. Used by one event loop."""

    def __init__(self) -> None:
        self.used = 0
        self._turn, self._released = asyncio.Lock(), asyncio.Event()

    async def acquire(self, pixels: int, limit: int) -> None:
        """Wait until these pixels fit below the limit. A single image always fits."""
        async with self._turn:
            while self.used and self.used + pixels > limit:
                self._released.clear()
                await self._released.wait()
            self.used += pixels

    def release(self, pixels: int) -> None:
        self.used -= pixels
        self._released.set()


def _decode_if_few_pixels(processor: VLProcessor, image: bytes, limit: int) -> NDArray[np.uint8] | _Error | int:
    """Decode a small image; for a larger one, return how many pixels decoding needs."""
    try:
        pixels = count_decoded_pixels(image, processor.config.image_resizing, WEB_FORMATS)
        if pixels > limit:
            raise ImageError("too_large", f"{pixels} pixels; serve.max_image_pixels allows {limit}")
    except ImageError as error:
        return _ERRORS[error.reason]
    return _decode_or_error(processor, image) if pixels <= _SMALL_PIXELS else pixels


def _decode_or_error(processor: VLProcessor, image: bytes) -> NDArray[np.uint8] | _Error:
    """Decode an image and return errors as values: the traceback of an exception holds the decoder's buffers, and forms
    a cycle with the future that brings it to the event loop, so that tens of megabytes would stay until the garbage is
    collected.
    """
    try:
        return processor.decode_image(image, formats=WEB_FORMATS)
    except ImageError as error:
        return _ERRORS[error.reason]


def _decode_input_or_error(processor: VLProcessor, name: str, data: bytes) -> Mapping[str, NDArray[Any]] | _Error:
    try:
        return processor.decode_input(name, data)
    except MediumError as error:
        return (413 if error.reason == "too_large" else 422, f"{error.reason}_input", f"input {name!r}: {error}")
