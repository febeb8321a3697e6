"""Pictures that have shapes, as photographs have, and passes in this process: Ray's workers take seconds to start."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.data.index import build
from pipelines.data.prepare import run


def picture(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Smooth coloured shapes; another seed gives other ones."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **settings: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **settings)
    return out.getvalue()


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


Pass = Callable[..., Iterator[Mapping[str, Any]]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pass | None], None]:
    """``here()`` lets passes run in this process, the last item first; ``here(other)`` in another way."""

    def serial(items: Sequence[Any], work: Any) -> Iterator[Mapping[str, Any]]:
        yield from map(work, reversed(items))

    def use(other: Pass | None = None) -> None:
        for module in (run, build):
            monkeypatch.setattr(module, "map_shards", other or serial)

    return use
