"""What the importers' tests share: pictures to import, and a source read to its end."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipelines.data.importing.importer import Importer, RejectedSample, SourceSample


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """``picture(7)`` is an image file unlike ``picture(8)``; the same number gives the same bytes."""

    def draw(number: int, format: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (6, 4), (number % 256, number // 256, 99)).save(buffer, format)
        return buffer.getvalue()

    return draw


@pytest.fixture(scope="session")
def read_all() -> Callable[[Importer], tuple[dict[str, SourceSample], list[RejectedSample]]]:
    """Records by key, and rejects, of a whole source; no key may come twice."""

    def read(source: Importer) -> tuple[dict[str, SourceSample], list[RejectedSample]]:
        entries = list(source.read().samples)
        records = [entry for entry in entries if isinstance(entry, SourceSample)]
        by_key = {record.key: record for record in records}
        assert len(by_key) == len(records)
        return by_key, [entry for entry in entries if isinstance(entry, RejectedSample)]

    return read


@pytest.fixture(scope="session")
def write_tar() -> Callable[[Path, dict[str, bytes]], Path]:
    """Writes a plain tar of the named members."""

    def write(path: Path, members: dict[str, bytes]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write
