"""Folders on a real S3-compatible server: listing, ranges, retries, changed objects, credentials."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
import s3fs

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.files import samples_file, total_sample_count
from pipelines.data.index.index import SplitAssignment
from pipelines.data.index.index_shard import index_shard
from pipelines.data.index.scan import scan_tar
from pipelines.errors import DataError
from pipelines.storage.folder import StorageFolder
from pipelines.storage.retries import AccessError
from tests.pipelines.data.tar_maker import build_tar, photo, sample, samples
from tests.pipelines.storage.stores import S3Store, s3_store

PLAIN = IndexConfig()


@pytest.fixture(scope="module")
def store() -> Iterator[S3Store]:
    with s3_store() as running:
        running.client.create_bucket(Bucket="store")
        yield running


@pytest.fixture(autouse=True)
def _environment(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipelines.storage.retries.FIRST_DELAY_S", 0.001)
    store.faults.seen.clear()
    yield
    store.faults.kinds = iter(())
    s3fs.S3FileSystem.clear_instance_cache()  # they hold on to the credentials that they began with


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> StorageFolder:
    return StorageFolder(f"s3://store/{request.node.name}")


def test_what_is_written_is_listed_read_and_deleted(folder: StorageFolder) -> None:
    assert folder.files() == []
    assert not folder.exists("a.tar")
    data = build_tar(samples(range(3)))
    folder.write("a.tar", data)
    folder.write("_index/samples/a", b"1")
    [listed] = folder.files()
    assert (listed.name, listed.size) == ("a.tar", len(data))
    assert listed == folder.stamp("a.tar")
    assert listed.stamp
    assert folder.subfolders() == ["_index"]
    assert folder.exists("a.tar")
    assert folder.read("a.tar") == data
    assert pickle.loads(pickle.dumps(folder)).read("_index/samples/a") == b"1"  # noqa: S301
    ranges = [(len(data) - 5, 5), (512, 10), (0, 700)]
    assert folder.read_ranges("a.tar", ranges) == [data[at : at + size] for at, size in ranges]
    folder.copy_file("a.tar", "taken/a.tar")
    folder.remove("a.tar")
    folder.remove("a.tar")
    assert folder.read("taken/a.tar") == data
    with pytest.raises(FileNotFoundError):
        folder.copy_file("a.tar", "taken/b.tar")
    folder.remove_folder("taken")
    folder.remove_folder("_index")
    assert folder.files() == []
    assert folder.subfolders() == []
    with pytest.raises(FileNotFoundError):
        folder.read("a.tar")


def test_what_another_writer_does_is_seen_at_once(folder: StorageFolder, store: S3Store) -> None:
    folder.write("a.tar", b"1")
    before = folder.files()
    prefix = folder.uri.removeprefix("s3://store/")
    store.client.put_object(Bucket="store", Key=f"{prefix}/a.tar", Body=b"2")
    store.client.put_object(Bucket="store", Key=f"{prefix}/sub/b.tar", Body=b"2")
    assert [file.size for file in folder.files()] == [1]
    assert folder.files() != before
    assert folder.subfolders() == ["sub"]
    assert [file.name for file in folder.files("sub")] == ["b.tar"]


@pytest.mark.parametrize("kind", [500, 503, 429, "cut"])
def test_transient_errors_lose_nothing(folder: StorageFolder, store: S3Store, kind: int | str) -> None:
    data = build_tar([(f"{n}.png", photo(n, (640, 640), "PNG")) for n in range(8)])
    folder.write("a.tar", data)
    store.faults.kinds = cycle([kind, "", ""])
    ranges = [(0, 10), (3_000_000, 10), (6_000_011, 100)]
    assert folder.read_ranges("a.tar", ranges) == [data[at : at + size] for at, size in ranges]
    assert folder.read("a.tar") == data
    with folder.stream("a.tar", len(data)) as stream:
        assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == data
    assert store.faults.seen[kind] >= 3


def test_an_error_that_stays_is_raised(folder: StorageFolder, store: S3Store) -> None:
    folder.write("a.tar", b"1" * 100)
    store.faults.kinds = cycle([500])
    with pytest.raises(OSError):
        folder.read_ranges("a.tar", [(0, 10)])
    store.faults.kinds = iter(())
    with pytest.raises(OSError, match="read 10 of 20 bytes at 90"):
        folder.read_ranges("a.tar", [(90, 20)])


def test_a_shard_is_indexed_again_only_where_its_object_changed(folder: StorageFolder) -> None:
    data = build_tar(samples(range(5)))
    folder.write("a.tar", data)
    first = index_shard(folder, folder.files()[0], PLAIN, SplitAssignment(0.0))
    assert total_sample_count(first) == 5
    part = samples_file(first["part"])
    written = folder.stamp(part), folder.read(part)
    assert index_shard(folder, folder.files()[0], PLAIN, SplitAssignment(0.0)) == first
    assert (folder.stamp(part), folder.read(part)) == written
    folder.write("a.tar", build_tar(samples(range(1, 6))))
    again = index_shard(folder, folder.files()[0], PLAIN, SplitAssignment(0.0))
    assert (total_sample_count(again), again["sha256"] == first["sha256"]) == (5, False)


def test_an_object_that_changes_while_it_is_read_is_not_indexed(
    folder: StorageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("a.tar", build_tar(samples(range(5))))

    def overtaken(*arguments, **settings):
        scan = scan_tar(*arguments, **settings)
        folder.write("a.tar", build_tar(samples(range(1, 6))))
        return scan

    monkeypatch.setattr("pipelines.data.index.index_shard.scan_tar", overtaken)
    summary = index_shard(folder, folder.files()[0], PLAIN, SplitAssignment(0.0))
    assert summary == {"name": "a.tar", "unreadable": "OSError: it changed while it was read; run the index job again"}
    assert folder.files("_index/samples") == []


@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_named_with_the_remedy(
    folder: StorageFolder, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("a.tar", build_tar(sample(1)))
    [file] = folder.files()
    monkeypatch.setenv(wrong, "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    stranger = StorageFolder(folder.uri)
    remedy = "in the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    refused = f"'{re.escape(folder.uri)}' denies access .*{remedy}"
    for attempt in (
        stranger.files,
        stranger.subfolders,
        lambda: stranger.read("a.tar"),
        lambda: stranger.read_ranges("a.tar", [(0, 10)]),
        lambda: stranger.stream("a.tar", file.size).read(10),
        lambda: stranger.write("b.tar", b""),
        lambda: stranger.copy_file("a.tar", "b.tar"),
        lambda: build_index(folder.uri, PLAIN),
    ):
        with pytest.raises(AccessError, match=refused):
            attempt()


def test_no_credentials(folder: StorageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"denies access \(.*Unable to locate credentials.*AWS_ACCESS_KEY_ID"):
        folder.files()


def test_an_error_of_access_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(AccessError("refused; remedy")))  # noqa: S301
    assert (type(error), str(error)) == (AccessError, "refused; remedy")
    assert isinstance(error, OSError)
    assert isinstance(error, DataError)


def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("pipelines.storage.retries.ATTEMPTS", 1)
    with pytest.raises(OSError, match="Could not connect"):
        StorageFolder("s3://store/x").read("a.tar")


def test_tars_that_cannot_be_written_beside_are_refused_before_they_are_read(
    folder: StorageFolder, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("a.tar", build_tar(sample(1)))
    monkeypatch.setattr(StorageFolder, "write", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    with pytest.raises(DataError, match=r"no index can be written beside .*read-only.*index the tars where"):
        build_index(folder.uri, PLAIN)
