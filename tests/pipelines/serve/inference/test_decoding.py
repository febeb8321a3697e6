"""What callers send decides neither how much a replica decodes at one time, nor how long others wait for it."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.data.texts.corpus import train_tokenizer
from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError
from pipelines.serve.inference.decoding import ImageDecoder, PixelBudget, decoding_pixel_limit
from vlmodel.images import resize
from vlmodel.images.decoders import cpu
from vlmodel.images.decoders.cpu import count_decoded_pixels
from vlmodel.images.errors import ImageError
from vlmodel.images.pillow import WEB_FORMATS
from vlmodel.images.resize import ImageResizing
from vlmodel.processor import ProcessorConfig, VLProcessor

LIMIT = 16_000_000


def saved(width: int, height: int, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(out, form, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def processor() -> VLProcessor:
    return VLProcessor(ProcessorConfig(image_size=32), train_tokenizer(["is it ?"], 64), ["yes"])


@pytest.fixture
def decoder() -> Iterator[ImageDecoder]:
    image_decoder = ImageDecoder(4)
    yield image_decoder
    image_decoder.close()


def test_the_limit_follows_the_models_input() -> None:
    assert decoding_pixel_limit(ServeConfig(), (224, 224)) == 16_000_000
    assert decoding_pixel_limit(ServeConfig(), (512, 2048)) == 64 * 1024**2
    assert decoding_pixel_limit(ServeConfig(max_image_pixels=5), (1024, 1024)) == 5


def test_a_bomb_is_refused_before_it_is_decoded(
    decoder: ImageDecoder, processor: VLProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    bombs = [saved(5000, 4000, form, **how) for form, how in (("WEBP", {"lossless": True}), ("PNG", {}), ("GIF", {}))]
    bombs.append(saved(5000, 4000, "JPEG", progressive=True))  # libjpeg holds all of it, whatever is asked for
    monkeypatch.setattr(VLProcessor, "decode_image", lambda *_, **__: pytest.fail("was decoded"))
    for bomb in bombs:
        with pytest.raises(ApiError) as refused:
            asyncio.run(decoder.decode(processor, bomb, LIMIT))
        assert (refused.value.status, refused.value.code) == (413, "image_too_large")


def test_a_large_photograph_counts_the_part_of_its_size_that_is_decoded(
    decoder: ImageDecoder, processor: VLProcessor
) -> None:
    photograph = saved(5000, 4000, "JPEG")
    assert count_decoded_pixels(photograph, ImageResizing((32, 32))) == 625 * 500
    assert count_decoded_pixels(photograph, ImageResizing((500, 500))) == 1250 * 1000
    assert count_decoded_pixels(photograph, ImageResizing((1000, 1000))) == 2500 * 2000
    assert count_decoded_pixels(photograph, ImageResizing((32, 1250))) == 2500 * 2000
    assert count_decoded_pixels(photograph, ImageResizing((32, 1251))) == 5000 * 4000
    assert count_decoded_pixels(photograph, ImageResizing((1001, 1001))) == 5000 * 4000
    pixels = asyncio.run(decoder.decode(processor, photograph, LIMIT))
    np.testing.assert_array_equal(pixels, processor.decode_image(photograph))


def test_what_is_counted_is_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = resize.resize_image

    def counting(pixels_HWC: np.ndarray, *rest: Any) -> np.ndarray:
        decoded.append(pixels_HWC.shape[0] * pixels_HWC.shape[1])
        return original(pixels_HWC, *rest)

    monkeypatch.setattr(cpu, "resize_image", counting)
    for width, height in ((100, 80), (517, 300), (1033, 777), (2000, 300)):
        for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF"):
            for size in (16, 64, 129):
                data = saved(width, height, form)
                cpu.decode_image(data, ImageResizing((size, size)), LIMIT)
                assert count_decoded_pixels(data, ImageResizing((size, size))) == decoded[-1], (
                    width,
                    height,
                    form,
                    size,
                )


def test_only_formats_of_the_web_are_taken_of_callers(decoder: ImageDecoder, processor: VLProcessor) -> None:
    for form in ("TIFF", "AVIF", "JPEG2000"):
        with pytest.raises(ApiError) as refused:
            asyncio.run(decoder.decode(processor, saved(20, 20, form), LIMIT))
        assert refused.value.code == "undecodable_image"
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        assert form.lower() in WEB_FORMATS
        asyncio.run(decoder.decode(processor, saved(20, 20, form), LIMIT))


def test_pixels_at_one_time_are_bounded_and_small_pictures_do_not_wait(
    decoder: ImageDecoder, processor: VLProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The large ones are held until the small one has been answered."""
    large, small = saved(1500, 1000, "PNG"), saved(20, 20, "PNG")
    may_end, lock = threading.Event(), threading.Lock()
    at_once = [0]
    most = [0]
    decode = VLProcessor.decode_image

    def holding(self: VLProcessor, data: bytes, **options: Any) -> np.ndarray:
        if data is not large:
            return decode(self, data, **options)
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        assert may_end.wait(60)
        with lock:
            at_once[0] -= 1
        return decode(self, data, **options)

    monkeypatch.setattr(VLProcessor, "decode_image", holding)

    async def go() -> None:
        waiting = [asyncio.create_task(decoder.decode(processor, large, 2 * 1_500_000 + 1)) for _ in range(6)]
        while at_once[0] < 2:
            await asyncio.sleep(0.01)
        await decoder.decode(processor, small, 3_000_001)
        may_end.set()
        await asyncio.gather(*waiting)

    asyncio.run(go())
    assert most == [2]
    assert decoder._budget.used == 0


def test_disconnect_frees_exactly_its_bytes() -> None:
    async def go() -> None:
        budget = PixelBudget()
        await budget.acquire(10, 10)
        leaving, staying = asyncio.create_task(budget.acquire(8, 10)), asyncio.create_task(budget.acquire(9, 10))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert budget.used == 10
        budget.release(10)
        await staying
        assert budget.used == 9
        budget.release(9)
        assert budget.used == 0

    asyncio.run(go())


def test_cancelled_decoding_counts_its_pixels_until_it_ends(
    decoder: ImageDecoder, processor: VLProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, may_end = threading.Event(), threading.Event()

    def holding(self: VLProcessor, data: bytes, **options: Any) -> np.ndarray:
        started.set()
        assert may_end.wait(60)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(VLProcessor, "decode_image", holding)

    async def go() -> None:
        task = asyncio.create_task(decoder.decode(processor, saved(1500, 1000, "PNG"), LIMIT))
        while not started.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert decoder._budget.used == 1_500_000
        may_end.set()
        while decoder._budget.used:
            await asyncio.sleep(0.01)

    asyncio.run(go())


@pytest.mark.parametrize("size", [(20, 20), (1500, 1000)])
def test_refused_image_is_freed_without_garbage_collection(
    decoder: ImageDecoder, processor: VLProcessor, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    buffers: list[weakref.ref[np.ndarray]] = []

    def refusing(self: VLProcessor, data: bytes, **options: Any) -> np.ndarray:
        buffer = np.zeros(1000)
        buffers.append(weakref.ref(buffer))
        raise ImageError("truncated", "the file ends")

    async def go() -> None:
        with pytest.raises(ApiError, match="truncated_image"):
            await decoder.decode(processor, saved(*size, "PNG"), LIMIT)

    monkeypatch.setattr(VLProcessor, "decode_image", refusing)
    gc.disable()
    try:
        asyncio.run(go())
        assert [buffer() for buffer in buffers] == [None]
    finally:
        gc.enable()


def test_pictures_that_wait_have_their_turn_in_order() -> None:
    async def go() -> None:
        budget, order = PixelBudget(), []

        async def decode(name: str, pixels: int) -> None:
            await budget.acquire(pixels, 10)
            order.append(name)

        await budget.acquire(5, 10)
        tasks = [asyncio.create_task(decode(name, pixels)) for name, pixels in (("large", 10), ("small", 5))]
        await asyncio.sleep(0.01)
        assert order == [], "the small one fits, and came later"
        budget.release(5)
        await asyncio.sleep(0.01)
        assert order == ["large"]
        budget.release(10)
        await asyncio.gather(*tasks)
        assert order == ["large", "small"]

    asyncio.run(go())
