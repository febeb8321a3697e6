"""Tars for tests: members as plain tuples, sound or spoiled in a known way."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

BLOCK = 512

Entry = tuple[str, bytes]


def photo(seed: int, size: tuple[int, int] = (48, 40), form: str = "JPEG") -> bytes:
    """A noisy picture, so its bytes are many and differ by seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def series(seed: int, shape: tuple[int, int] = (20, 3)) -> bytes:
    """A series as .npy; its bytes differ by seed."""
    out = io.BytesIO()
    np.save(out, np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    return out.getvalue()


def texts(number: int) -> bytes:
    return json.dumps(
        {"captions": [f"picture {number}"], "questions": [{"question": f"is it {number}?", "answer": "yes"}]}
    ).encode()


def sample(number: int) -> list[Entry]:
    return [(f"{number:04d}.jpg", photo(number)), (f"{number:04d}.json", texts(number))]


def samples(numbers: Sequence[int]) -> list[Entry]:
    return [entry for number in numbers for entry in sample(number)]


def build_tar(entries: Sequence[Entry | tarfile.TarInfo], form: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    return out.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def header_of(data: bytes, name: str) -> int:
    """Offset of a member's header."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmember(name).offset


def data_of(data: bytes, name: str) -> int:
    """Offset of a member's data."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmember(name).offset_data


def zeroed(data: bytes, offset: int, size: int = BLOCK) -> bytes:
    return data[:offset] + bytes(size) + data[offset + size :]


def write_tar(folder: Path, name: str, entries: Sequence[Entry | tarfile.TarInfo]) -> Path:
    path = folder / name
    path.write_bytes(build_tar(entries))
    return path


def members_of(path: Path) -> dict[str, bytes]:
    """The members of a tar by name."""
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}
