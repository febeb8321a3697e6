"""What the check of an image costs where the image is a bomb, and that its quick look accepts no more than Pillow.

Which images are sound is tested in test_scan.py.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.data.texts.corpus import train_tokenizer
from vlmodel.media import image
from vlmodel.processor import ProcessorConfig, VLProcessor

SIDE = 30_000
EXTRA_MB = 300


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound PNG of 30,000 x 30,000 pixels in 110 KB, which is 900 MB once it is decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = SIDE.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])  # one bit a pixel
    deflate = zlib.compressobj()
    row = bytes(1 + -(-SIDE // 8))
    pixels = b"".join([*(deflate.compress(row) for _ in range(SIDE)), deflate.flush()])
    path = tmp_path_factory.mktemp("bomb") / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


CHECK = """
from vlmodel.media.base import CheckLimits, MediumError as Refused
from vlmodel.media.image import MEDIUM
look = lambda data: MEDIUM.check_file(data, CheckLimits(max_pixels=100_000_000))
"""
DECODE = """
from vlmodel.images.errors import ImageError as Refused
from vlmodel.media import image
from vlmodel.processor import VLProcessor
look = VLProcessor.from_pretrained(sys.argv[2]).decode_image
"""
# The peak of a process's own memory: that of getrusage may be of the process that started it.
MEASURE = """
import json, re, sys, time
from pathlib import Path
peak_mb = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
{look}
data = Path(sys.argv[1]).read_bytes()
before, start = peak_mb(), time.perf_counter()
try:
    look(data)
    refused = ""
except Refused as error:
    refused = str(error)
print(json.dumps([refused, peak_mb() - before, time.perf_counter() - start]))
"""


@pytest.mark.parametrize("look", [CHECK, DECODE], ids=["index", "processor"])
def test_a_bomb_is_refused_without_being_decoded(look: str, bomb: Path, tmp_path: Path) -> None:
    VLProcessor(ProcessorConfig(), train_tokenizer(["is it ?"], 64), ["yes"]).save_pretrained(tmp_path)
    code = MEASURE.format(look=look)
    done = subprocess.run(
        [sys.executable, "-c", code, str(bomb), str(tmp_path)], cwd=Path(__file__).parents[3], check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    refused, extra_mb, seconds = json.loads(done.stdout)
    print(f"{extra_mb:.0f} MB more, {seconds:.3f} s")
    assert "900000000 pixels" in refused
    assert extra_mb < EXTRA_MB


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 3}], ids=str)
def test_the_quick_look_accepts_nothing_that_pillow_refuses(mode: str, how: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (15, 20, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((160, 120)).convert(mode).save(out, "JPEG", **how)
    sound, rng = out.getvalue(), random.Random(0)
    verdicts = [(_pillow_decodes(data), image._decodes_cleanly(data)) for data in _spoiled(sound, rng, 150)]
    assert (False, True) not in verdicts
    assert {(False, False), (True, True)} <= set(verdicts)
    assert image._decodes_cleanly(sound)


def _spoiled(sound: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    """Cut, or with a byte, a block or a few bytes more that are wrong."""
    for number in range(count):
        at = rng.randrange(len(sound))
        wrong = (b"", rng.randbytes(1), bytes(512), rng.randbytes(9))[number % 4]
        behind = (len(sound), at + 1, at + 512, at)[number % 4]
        yield sound[:at] + wrong[: len(sound) - at] + sound[behind:]


def _pillow_decodes(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as opened:
            opened.load()
    except Exception:  # whatever broken bytes lead it to
        return False
    return True
