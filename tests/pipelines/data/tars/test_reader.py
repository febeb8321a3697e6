"""Ranged reading of samples: right, in the order asked for, and never silently of other bytes."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.tars.reader import ShardReader
from pipelines.data.tars.sample import parse_texts
from pipelines.errors import DataError
from pipelines.storage.folder import StorageFolder, _merge_ranges
from tests.pipelines.data.tar_maker import build_tar, photo, samples, texts, write_tar

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch):
    monkeypatch.setattr("pipelines.storage.retries.FIRST_DELAY_S", 0.001)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    mixed = [
        *samples(range(8)),
        ("8.jpg", photo(8)),
        ("8.txt", b"eight"),
        ("8.json", b"{}"),
        ("9.jpg", photo(9)),
        ("9.txt", b"nine"),
    ]
    write_tar(tmp_path, "a.tar", mixed)
    return build_index(str(tmp_path), IndexConfig(validation_fraction=0.0))


def test_samples_in_the_order_asked_for(index):
    records = ShardReader(index).read("a.tar", [7, 0, 8, 9, 0])
    assert [record.key for record in records] == ["0007", "0000", "8", "9", "0000"]
    assert [record.inputs["image"] for record in records] == [photo(n) for n in (7, 0, 8, 9, 0)]
    assert records[0].texts == parse_texts(texts(7), None)
    assert [record.texts.captions for record in records[2:4]] == [("eight",), ("nine",)]
    assert ShardReader(index).read("a.tar", []) == []
    read = ShardReader(index).read_texts("a.tar", [9, 2])
    assert read == [parse_texts(None, b"nine"), parse_texts(texts(2), None)]
    with pytest.raises(IndexError):
        ShardReader(index).read("a.tar", [10])


def test_metadata_is_what_the_json_says_beside_the_texts(tmp_path):
    entries = [
        *samples([1]),
        ("2.jpg", photo(2)), ("2.json", b'{"captions": ["two"], "url": "http://x", "number": {"a": [1, null]}}'),
        ("3.jpg", photo(3)), ("3.txt", b"three"),
        ("4.jpg", photo(4)), ("4.json", b'{"caption": "of img2dataset", "width": 48}'),
    ]  # fmt: skip
    write_tar(tmp_path, "a.tar", entries)
    reader = ShardReader(build_index(str(tmp_path), IndexConfig(validation_fraction=0.0)))
    assert reader.read_metadata("a.tar", [3, 2, 1, 0]) == [
        {"caption": "of img2dataset", "width": 48},
        {},
        {"url": "http://x", "number": {"a": [1, None]}},
        {},
    ]
    write_tar(tmp_path, "a.tar", [("0.jpg", photo(9)), ("0.txt", b"\xff" * 9000)])
    with pytest.raises(DataError, match="run the index job"):
        reader.read_metadata("a.tar", [1])


def test_rows_are_kept_for_a_bounded_number_of_shards(tmp_path):
    for n in range(4):
        write_tar(tmp_path, f"{n}.tar", samples([n]))
    reader = ShardReader(build_index(str(tmp_path)), cached_shards=2)
    for n in (0, 1, 0, 1, 2, 3, 3):
        reader.read(f"{n}.tar", [0])
    info = reader._rows.cache_info()
    assert (info.misses, info.currsize) == (4, 2)


def test_a_changed_shard_is_refused(index, tmp_path):
    path = tmp_path / "a.tar"
    data = path.read_bytes()
    row = index.rows("a.tar").to_pylist()[3]
    at = row["image.offset"] + 100
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    reader = ShardReader(index)
    assert reader.read("a.tar", [2])[0].key == "0002"
    with pytest.raises(DataError, match=r"sample '0003' in shard 'a.tar'.*run the index job again"):
        reader.read("a.tar", [2, 3])
    path.write_bytes(data[: row["image.offset"] + 10])
    with pytest.raises(DataError, match=r"cannot be read.*run the index job"):
        reader.read("a.tar", [3])
    path.unlink()
    with pytest.raises(DataError, match=r"cannot be read.*FileNotFoundError"):
        reader.read("a.tar", [0])


def test_neighbouring_ranges_are_read_together():
    ranges = [(1000, 10), (0, 100), (100, 50), (400, 100), (4000, 5)]
    assert _merge_ranges(ranges, gap=300) == [(0, 500, [1, 2, 3]), (1000, 1010, [0]), (4000, 4005, [4])]
    assert _merge_ranges([(0, 20 << 20), (20 << 20, 1)], gap=0) == [(0, 20 << 20, [0]), (20 << 20, (20 << 20) + 1, [1])]


class FlakyFileSystem(MemoryFileSystem):
    """Memory that fails at the first two requests, then delivers one body short."""

    protocol = "flaky"
    faults = ("error", "error", "short")
    requests = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("flaky:/"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        fault = self.faults[type(self).requests] if type(self).requests < len(self.faults) else ""
        type(self).requests += 1
        if fault == "error":
            raise ConnectionResetError("reset by peer")
        data = super().cat_file(path, start, end, **kwargs)
        return data[:-1] if fault == "short" else data


def test_transient_errors_of_a_remote_store_lose_nothing(monkeypatch):
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    fs = fsspec.filesystem("flaky")
    data = build_tar(samples([1]))
    fs.pipe_file("/store/a.tar", data)
    ranges = [(512, 10), (len(data) - 5, 5)]
    assert StorageFolder("flaky://store").read_ranges("a.tar", ranges) == [data[512:522], data[-5:]]
    assert FlakyFileSystem.requests == len(FlakyFileSystem.faults) + 1
    monkeypatch.setattr(FlakyFileSystem, "faults", ("error",) * 1000)
    with pytest.raises(ConnectionResetError):
        StorageFolder("flaky://store").read_ranges("a.tar", ranges)


def test_what_has_arrived_is_not_asked_for_again(monkeypatch):
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    monkeypatch.setattr(FlakyFileSystem, "faults", ("", "error", "short", "", "error"))
    monkeypatch.setattr(FlakyFileSystem, "requests", 0)
    data = bytes(range(256)) * 4096
    fsspec.filesystem("flaky").pipe_file("/store/b.tar", data)
    ranges = [(0, 10), (300_007, 10), (600_011, 10)]  # too far from each other to be read together
    assert StorageFolder("flaky://store").read_ranges("b.tar", ranges) == [data[at : at + n] for at, n in ranges]
    assert FlakyFileSystem.requests == 3 + 2 + 1


def test_a_missing_back_end_is_named():
    with pytest.raises(DataError, match="'nosuch://x' cannot be opened"):
        StorageFolder("nosuch://x")
