"""Folders that exist only with their manifest, in each kind of storage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs

from pipelines.storage import stored
from pipelines.storage.folder import StorageFolder
from pipelines.storage.manifest import ManifestError
from tests.pipelines.storage.stores import http_store, s3_store

LARGE = bytes(range(256)) * 40_000  # several pieces


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    with s3_store() as running:
        running.client.create_bucket(Bucket="store")
        yield running.environment
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["local", "file", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorageFolder:
    """A folder of a store that can be written."""
    if request.param == "s3":
        for name, value in request.getfixturevalue("bucket").items():
            monkeypatch.setenv(name, value)
    places = {"local": str(tmp_path / "stored"), "file": f"file://{tmp_path}/stored"}
    return StorageFolder(places.get(request.param, f"{request.param}://store/{tmp_path.name}/stored"))


@pytest.fixture
def local(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "model" / "deep").mkdir(parents=True)
    (source / "model" / "weights").write_bytes(LARGE)
    (source / "model" / "deep" / "a.json").write_text("{}")
    (source / "state.json").write_text('{"step": 1}')
    return source


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }


def test_what_was_stored_is_read_back(folder: StorageFolder, local: Path) -> None:
    listed = stored.store_folder(local, folder)
    assert stored.read_manifest(folder) == listed
    assert listed["model/weights"].bytes == len(LARGE)
    with stored.local_copy_of(folder, listed) as copy:
        assert contents(copy) == contents(local)
    assert copy.exists() == folder.is_local, "a download is temporary"
    assert json.loads(stored.read_verified_file(folder, listed, "state.json")) == {"step": 1}
    with stored.local_copy_of(folder, listed, "model/deep") as copy:
        assert ("model/weights" in contents(copy)) == folder.is_local


def test_a_folder_without_its_manifest_is_none(folder: StorageFolder, local: Path) -> None:
    with pytest.raises(ManifestError, match=r"has no manifest\.json: it was never completed"):
        stored.read_manifest(folder)
    stored.store_folder(local, folder)
    folder.write("manifest.json", b"{")
    with pytest.raises(ManifestError, match=r"manifest\.json is damaged"):
        stored.read_manifest(folder)


def test_another_copy_takes_the_place_of_the_first(folder: StorageFolder, local: Path) -> None:
    stored.store_folder(local, folder)
    folder.write(".weights.0123.partial", b"half")
    (local / "model" / "weights").write_bytes(b"other")
    (local / "state.json").unlink()
    with stored.local_copy_of(folder, stored.store_folder(local, folder)) as copy:
        assert contents(copy) == contents(local)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.write("model/weights", LARGE[:-1]), "model/weights was altered after it was written"),
        (lambda f: f.write("model/weights", LARGE + b"1"), "model/weights was altered after it was written"),
        (lambda f: f.write("model/weights", b"1" + LARGE[1:]), "model/weights was altered after it was written"),
        (lambda f: f.remove("model/deep/a.json"), "model/deep/a.json is missing"),
        (lambda f: f.write("model/b.json", b"{}"), "model/b.json is not in manifest.json; delete it"),
    ],
    ids=["truncated", "longer", "altered", "missing", "added"],
)
def test_what_was_changed_is_named(
    folder: StorageFolder, local: Path, change: Callable[[StorageFolder], None], says: str
) -> None:
    listed = stored.store_folder(local, folder)
    change(folder)
    with pytest.raises(ManifestError, match=says), stored.local_copy_of(folder, listed, "model"):
        pass


def test_a_small_file_is_compared_too(folder: StorageFolder, local: Path) -> None:
    listed = stored.store_folder(local, folder)
    folder.write("state.json", b'{"step": 2}')
    with pytest.raises(ManifestError, match=r"state\.json was altered"):
        stored.read_verified_file(folder, listed, "state.json")
    folder.remove("state.json")
    with pytest.raises(ManifestError, match=r"state\.json is missing"):
        stored.read_verified_file(folder, listed, "state.json")
    with pytest.raises(ManifestError, match=r"damaged \(no other\.json in it\)"):
        stored.read_verified_file(folder, listed, "other.json")


def test_a_store_that_is_read_over_http(local: Path) -> None:
    stored.store_folder(local, StorageFolder(local.parent / "served" / "run"))
    with http_store(local.parent / "served") as (uri, _):
        folder = StorageFolder(uri).subfolder("run")
        listed = stored.read_manifest(folder)
        with stored.local_copy_of(folder, listed) as copy:
            assert contents(copy) == contents(local)
