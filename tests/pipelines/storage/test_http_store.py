"""Tars with their index served read-only over HTTP: read by ranges; refused where no index can be written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path

import pytest

from pipelines.data.index.build import build_index
from pipelines.data.index.index import Index
from pipelines.data.tars.reader import ShardReader
from pipelines.errors import DataError
from pipelines.storage.folder import StorageFolder
from pipelines.storage.retries import AccessError, RefusedError
from tests.pipelines.data.tar_maker import build_tar, photo, samples
from tests.pipelines.storage.stores import Faults, http_store


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.storage.retries.FIRST_DELAY_S", 0.001)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[StorageFolder, Path, Faults]]:
    (tmp_path / "a.tar").write_bytes(build_tar(samples(range(6))))
    with http_store(tmp_path) as (uri, faults):
        yield StorageFolder(uri), tmp_path, faults


def test_files_are_listed_with_sizes_and_stamps(served: tuple[StorageFolder, Path, Faults]) -> None:
    folder, disk, _ = served
    (disk / "b").mkdir()
    [listed] = [file for file in folder.files() if file.name == "a.tar"]
    assert listed.size == (disk / "a.tar").stat().st_size
    assert listed.stamp
    assert listed == folder.stamp("a.tar")
    assert folder.subfolders() == ["b"]
    assert folder.files("none") == []
    (disk / "a.tar").write_bytes(b"other")
    assert folder.files() != [listed]


@pytest.mark.parametrize("kind", [500, 503, 429, "cut"])
def test_transient_errors_lose_nothing(served: tuple[StorageFolder, Path, Faults], kind: int | str) -> None:
    folder, disk, faults = served
    data = build_tar([(f"{n}.png", photo(n, (640, 640), "PNG")) for n in range(8)])
    (disk / "b.tar").write_bytes(data)
    faults.kinds = cycle([kind, kind, "", "", ""])
    assert {file.name for file in folder.files()} == {"a.tar", "b.tar"}
    ranges = [(0, 10), (3_000_000, 10), (6_000_011, 100)]
    assert folder.read_ranges("b.tar", ranges) == [data[at : at + size] for at, size in ranges]
    assert folder.read("b.tar") == data
    with folder.stream("b.tar", len(data)) as stream:
        assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == data
    assert faults.seen[kind] >= 2


def test_answers_that_stay_are_not_asked_for_again(served: tuple[StorageFolder, Path, Faults]) -> None:
    folder, disk, faults = served
    (disk / "secret.txt").write_bytes(b"1")
    refused = r"denies access .*403.*in the environment: as fsspec's back end for http documents"
    with pytest.raises(AccessError, match=refused):
        folder.read("secret.txt")
    assert [file.name for file in folder.files()] == ["a.tar", "secret.txt"], "it does not hide its neighbours"
    with pytest.raises(FileNotFoundError):
        folder.read("none")
    with pytest.raises(RefusedError, match="416"):
        folder.read_ranges("a.tar", [(1 << 30, 10)])
    faults.kinds = iter([400])
    with pytest.raises(RefusedError, match="400"):
        folder.read_ranges("a.tar", [(0, 10)])


def test_a_server_without_ranges_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(build_tar(samples(range(3))))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        folder = StorageFolder(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(RefusedError, match="whole file came where 10 bytes were asked for; serve it with a server"):
            folder.read_ranges("a.tar", [(512, 10)])
        [listed] = folder.files()
        server.shutdown()
    assert listed.stamp  # of its time of change, as there is no ETag


@pytest.mark.usefixtures("ray_local")
def test_an_index_built_where_the_tars_are_serves_readers_elsewhere(served: tuple[StorageFolder, Path, Faults]) -> None:
    folder, disk, faults = served
    built = build_index(str(disk))
    index = Index.open(folder.uri)
    assert index.hash == built.hash
    faults.kinds = cycle([500, "cut", "", ""])
    records = ShardReader(index).read("a.tar", [5, 0, 3])
    assert [(record.key, record.inputs["image"]) for record in records] == [(f"{n:04d}", photo(n)) for n in (5, 0, 3)]
    faults.kinds = iter(())
    (disk / "a.tar").write_bytes(build_tar(samples(range(1, 7))))
    with pytest.raises(DataError, match="run the index job again"):
        ShardReader(index).read("a.tar", [0])


def test_no_index_is_built_where_nothing_can_be_written(served: tuple[StorageFolder, Path, Faults]) -> None:
    folder, _, _ = served
    with pytest.raises(DataError, match=r"no index can be written beside .*405.*index the tars where they are"):
        build_index(folder.uri)
