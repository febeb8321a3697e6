"""What the check of an image costs where the image is a bomb. Which images are sound is tested in test_scan.py."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from pipelines.data.corpus import train_tokenizer
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
from pipelines.data.errors import SampleError as Refused
from pipelines.data.validate import check_image
look = lambda data: check_image(data, 100_000_000)
"""
DECODE = """
from vlmodel.images import ImageError as Refused
from vlmodel.processor import VLProcessor
look = VLProcessor.from_pretrained(sys.argv[2]).decode
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
