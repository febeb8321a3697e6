"""Decoding for a replica: in threads beside the event loop, and bounded in all by pixels, whatever callers send.

A file of a few kilobytes may hold a picture of 100 million pixels. How many it takes is known from its header. A large
picture waits until it has room beside those that are being decoded, and small ones need not wait for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError
from vlmodel.images.decoders.cpu import decoded_pixels
from vlmodel.images.errors import ImageError
from vlmodel.images.pillow import WEB_FORMATS
from vlmodel.processor import VLProcessor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SMALL = 1_000_000
"""Pixels of a picture that needs no room: as many of them are decoded at once as there are threads."""
_LEAST_LIMIT = 16_000_000
_TIMES_INPUT = 64
_PASSED = 32
"""Pictures that may go ahead of a larger one that waits for room."""

_ERRORS = {
    "truncated": (422, "truncated_image", "the image file ends early; send it whole"),
    "undecodable": (422, "undecodable_image", "the image cannot be decoded; send a JPEG, PNG, WebP, BMP or GIF file"),
    "too_large": (413, "image_too_large", "the image has too many pixels; send a smaller one"),
}


def pixel_limit(config: ServeConfig, image_size: int) -> int:
    """Most pixels of a picture once it is decoded: as set, or else 64 times those that the model is given."""
    return config.max_image_pixels or max(_LEAST_LIMIT, _TIMES_INPUT * image_size**2)


class Decoding:
    """Decodes pictures, at most about ``limit`` pixels at one time.

    Args:
        threads: that decode.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._room = Room()

    async def decode(self, processor: VLProcessor, image: bytes, limit: int) -> NDArray[np.uint8]:
        """The picture as the model is given it.

        Args:
            limit: most pixels of it, and of all that are decoded at one time.

        Raises:
            ApiError: it cannot be decoded, or has too many pixels.
        """
        loop = asyncio.get_running_loop()
        try:
            seen = await loop.run_in_executor(self._pool, _small, processor, image, limit)
            if not isinstance(seen, int):
                return seen
            await self._room.take(seen, limit)
            future = self._pool.submit(_decoded, processor, image)
            # Not when the caller goes away, but when its picture's memory does.
            future.add_done_callback(lambda _: _soon(loop, self._room, seen))
            return await asyncio.wrap_future(future)
        except ImageError as error:
            raise ApiError(*_ERRORS[error.kind]) from error

    def close(self) -> None:
        """End the threads, once what they are at is done."""
        self._pool.shutdown(cancel_futures=True)


@dataclass
class _Waiting:
    pixels: int
    limit: int
    taken: asyncio.Future[None]
    passed: int = 0


class Room:
    """Pixels that may be decoded at one time. Used by one event loop."""

    def __init__(self) -> None:
        self.used = 0
        self._waiting: deque[_Waiting] = deque()

    async def take(self, pixels: int, limit: int) -> None:
        """Wait until these pixels have room below the limit; one picture alone always has."""
        one = _Waiting(pixels, limit, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        self._admit()
        try:
            await one.taken
        except asyncio.CancelledError:
            if one in self._waiting:
                self._waiting.remove(one)
                self._admit()
            elif not one.taken.cancelled():
                self.give(pixels)
            raise

    def give(self, pixels: int) -> None:
        """What was taken is free again."""
        self.used -= pixels
        self._admit()

    def _admit(self) -> None:
        """In order, but what has room may pass what has none, so many times."""
        ahead: list[_Waiting] = []
        for one in list(self._waiting):
            if self.used and self.used + one.pixels > one.limit:
                ahead.append(one)
                if one.passed >= _PASSED:
                    return
                continue
            self._waiting.remove(one)
            if not one.taken.done():
                self.used += one.pixels
                one.taken.set_result(None)
                for other in ahead:
                    other.passed += 1


def _soon(loop: asyncio.AbstractEventLoop, room: Room, pixels: int) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(room.give, pixels)


def _small(processor: VLProcessor, image: bytes, limit: int) -> NDArray[np.uint8] | int:
    """A small picture, decoded; of others how many pixels it takes to do so."""
    pixels = decoded_pixels(image, processor.config.image_size, WEB_FORMATS)
    if pixels > limit:
        raise ImageError("too_large", f"{pixels} pixels; serve.max_image_pixels allows {limit}")
    return _decoded(processor, image) if pixels <= SMALL else pixels


def _decoded(processor: VLProcessor, image: bytes) -> NDArray[np.uint8]:
    return processor.decode(image, formats=WEB_FORMATS)
