"""The page of what was left out: complete in its counts, showing what can be shown, and safe to open."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.data.index.fault import FAULT_SCHEMA
from pipelines.data.index.quarantine_page import render_quarantine_page
from pipelines.data.index.scan import scan_tar
from pipelines.data.tars.inputs import PAIRS
from pipelines.storage.folder import StorageFolder
from tests.pipelines.data.index.test_scan import png_of_size
from tests.pipelines.data.tar_maker import BLOCK, Entry, build_tar, link, photo, samples, series, texts

COUNTS = {"train": 1234, "val": 0, "test": 0}


def page(folder: Path, inputs: Sequence[str] = PAIRS, **tars: bytes) -> str:
    """The page of these tars, as the index job would make it."""
    rows = []
    for name, data in tars.items():
        (folder / f"{name}.tar").write_bytes(data)
        scan = scan_tar(io.BytesIO(data).read, inputs=inputs, max_pixels=10_000_000, max_bytes=1 << 20)
        rows += [fault.to_row(f"{name}.tar") for fault in scan.faults]
    return render_quarantine_page(StorageFolder(folder), pa.Table.from_pylist(rows, FAULT_SCHEMA), COUNTS)


def pictures(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def split(picture: bytes, share: float = 0.6) -> bytes:
    return picture[: int(len(picture) * share)]


def red(size: tuple[int, int] = (400, 300), form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 40, (size[1], size[0], 3), np.uint8)
    pixels[..., 0] += 200
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def test_counts_by_reason_and_shard(tmp_path: Path) -> None:
    bad: list[Entry] = [entry for n in range(30) for entry in ((f"b{n}.jpg", b"<html>"), (f"b{n}.txt", b"text"))]
    html = page(tmp_path, a=build_tar([*bad, ("x.json", texts(1))]), b=build_tar([*samples([1]), ("y.jpg", photo(1))]))
    assert "32 left out, 1,234 valid samples" in html
    text = re.sub(r"<[^>]+>", " ", html)
    assert re.search(r"undecodable_image\s+30\s", text)
    assert re.search(r"missing_image\s+1\s", text)
    assert re.search(r"a\.tar\s+31\s+b\.tar\s+1\s", text)
    assert "b0 " in text
    assert "6 more in quarantine.parquet" in text
    assert html.count('class="fault"') == 24 + 1 + 1
    assert f"a.tar b0.jpg at byte {BLOCK}" in text


def test_what_can_be_decoded_is_shown_and_of_the_rest_the_first_bytes(tmp_path: Path) -> None:
    for form in ("JPEG", "PNG", "GIF"):
        html = page(tmp_path, a=build_tar([(f"1.{form.lower()}", split(red(form=form))), ("1.txt", b"x")]))
        (picture,) = pictures(html)
        assert picture.size == (128, 96)
        upper = np.asarray(picture)[:30].reshape(-1, 3).mean(0)
        assert upper[0] > 190
        assert upper[1:].max() < 50
        assert "truncated_image (1)" in html
    others = [("1.jpg", b"\x00\x01<\xff"), ("1.txt", b"x"), ("2.jpg", red()), ("2.json", b"{<")]
    html = page(tmp_path, a=build_tar(others))
    assert pictures(html) == []
    assert "00 01 3c ff" in html
    assert "<pre>{&lt;</pre>" in html


def test_of_another_medium_the_first_bytes_are_shown(tmp_path: Path) -> None:
    entries = [("1.imu.csv", b"time,x\n0,1\n1\n"), ("2.imu.npy", series(2)[:-1]), ("3.jpg", split(red()))]
    html = page(tmp_path, ["image?", "imu?"], a=build_tar(entries))
    for reason in ("wrong_shape_series (1)", "truncated_series (1)", "truncated_image (1)"):
        assert reason in html
    assert "<pre>time,x\n0,1\n1\n</pre>" in html
    assert "93 4e 55 4d 50 59" in html
    assert len(pictures(html)) == 1


def test_a_bomb_a_link_and_a_cut_tar(tmp_path: Path) -> None:
    good = build_tar(samples([1, 2]))
    bomb: list[Entry] = [("1.png", png_of_size(30_000, 30_000)), ("1.txt", b"x")]
    cut = good[: len(good) // BLOCK * BLOCK // 3]
    html = page(tmp_path, a=build_tar([*bomb, link("2.jpg", "/etc/passwd"), ("2.txt", b"x")]), b=cut, c=b"")
    assert "900000000 pixels" in html
    assert "root:" not in html
    for reason in ("too_large_image (1)", "unsafe_member (1)", "broken_tar (2)"):
        assert reason in html
    assert len(pictures(html)) <= 1


def test_nothing_of_the_data_is_markup(tmp_path: Path) -> None:
    name = '"><img src=x onerror=alert(1)>'
    data = build_tar([(f"{name}.jpg", b"<script>alert(1)</script>"), (f"{name}.txt", b"x")])
    html = page(tmp_path, **{"<b>": data})
    seen: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append(tag)
            assert not [key for key, _ in attrs if key.startswith("on")]

    Tags().feed(html)
    assert not {"script", "img"} & set(seen)
    assert "&lt;b&gt;.tar" in html
    assert re.findall(r'(?:src|href)="(?!#|data:)', html) == []


def test_nothing_left_out(tmp_path: Path) -> None:
    assert "Nothing was left out." in page(tmp_path, a=build_tar(samples([1])))
