"""The index as a whole: built through Ray Data, incremental, exact in its splits, never half valid."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.data.index import build
from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.files import IndexPartName, total_sample_count
from pipelines.data.index.index import Index, SplitAssignment
from pipelines.data.index.index_shard import index_shard
from pipelines.data.tars.reader import ShardReader
from pipelines.errors import DataError
from pipelines.storage.folder import StorageFolder
from tests.pipelines.data.tar_maker import Entry, build_tar, header_of, link, photo, samples, texts, write_tar

LENIENT = IndexConfig(max_quarantine_fraction=1.0)

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch):
    monkeypatch.setattr("pipelines.storage.retries.FIRST_DELAY_S", 0.001)


def keys(index: Index, split: str | None = None) -> list[str]:
    rows = [row for shard in index.shards for row in index.rows(shard.name).to_pylist()]
    return [row["key"] for row in rows if split in (None, row["split"])]


def faults(index: Index) -> list[tuple[str, str | None, str]]:
    return [(row["shard"], row["key"], row["reason"]) for row in index.quarantine().to_pylist()]


def times(folder: Path) -> dict[str, int]:
    """When the part of each tar was written."""
    return {path.name.rsplit(".", 2)[0]: path.stat().st_mtime_ns for path in (folder / "_index" / "samples").iterdir()}


def age(path: Path) -> None:
    """Give a file another time of change, as a later write would."""
    later = path.stat().st_mtime + 10
    os.utime(path, (later, later))


def test_contents_counts_and_report(tmp_path):
    write_tar(tmp_path, "train-000001.tar", samples(range(20, 40)))
    write_tar(tmp_path, "train-000000.tar", samples(range(20)))
    write_tar(tmp_path, "val-000000.tar", samples(range(40, 44)))
    write_tar(tmp_path, "test-000000.tar", samples(range(50, 53)))
    seen: list[tuple[int, int]] = []
    index = build_index(str(tmp_path), report_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert index.counts() == {"train": 40, "val": 4, "test": 3}
    names = ["test-000000.tar", "train-000000.tar", "train-000001.tar", "val-000000.tar"]
    assert [shard.name for shard in index.shards] == names
    first = index.shards[1]
    assert first.sha256 == hashlib.sha256((tmp_path / first.name).read_bytes()).hexdigest()
    assert first.size == (tmp_path / first.name).stat().st_size
    assert first.sample_counts == first.questions == first.captions == {"train": 20}
    assert first.present == {"train": {frozenset({"captions", "image", "questions"}): 20}}
    assert keys(index, "train") == [f"{n:04d}" for n in range(40)]
    row = index.rows(first.name).to_pylist()[3]
    data = (tmp_path / first.name).read_bytes()[row["image.offset"] :][: row["image.size"]]
    assert data == photo(3)
    assert row["image.sha256"] == hashlib.sha256(data).hexdigest()
    assert (row["image.width"], row["image.height"], row["captions"], row["questions"]) == (48, 40, 1, 1)
    assert list(row)[:2] == ["key", "split"]
    report = index.report().splitlines()
    assert "train            2          40          40          40" in report
    assert report[-1] == "nothing was left out"
    copy = pickle.loads(pickle.dumps(index))  # noqa: S301
    assert copy.hash == index.hash
    assert keys(copy) == keys(index)


def test_the_report_says_which_tars_are_of_which_split(tmp_path):
    for number, name in enumerate(("a-0", "a-1", "b\x1b[2J", "cc-validation-0000", "held-out")):
        write_tar(tmp_path, f"{name}.tar", samples([number]))
    index = build_index(str(tmp_path), IndexConfig(splits={"test": ["held-*"]}))
    assert index.counts() == {"train": 3, "val": 1, "test": 1}
    assert "tars of train: a-*.tar (2), b\\x1b[*J.tar (1)" in index.report().splitlines()
    assert "tars of test: held-out.tar (1)" in index.report().splitlines()
    before = index.hash
    write_tar(tmp_path, "train-0.tar", samples([9]))
    with pytest.raises(DataError, match=r"1 tars say train .* 3 say no split \('a-0\.tar'"):
        build_index(str(tmp_path), IndexConfig(splits={"test": ["held-*"]}))
    (tmp_path / "train-0.tar").unlink()
    assert build_index(str(tmp_path)).hash != before, "which split a tar is of is part of what an index is"


def test_hash_is_of_the_contents(tmp_path):
    write_tar(tmp_path, "a.tar", samples(range(4)))
    write_tar(tmp_path, "b.tar", samples(range(4, 8)))
    first = build_index(str(tmp_path)).hash
    assert build_index(str(tmp_path)).hash == first
    assert build_index(str(tmp_path), force=True).hash == first
    age(tmp_path / "a.tar")
    assert build_index(str(tmp_path)).hash == first, "a touched tar is the same tar"
    assert build_index(str(tmp_path), IndexConfig(validation_fraction=0.5)).hash != first
    write_tar(tmp_path, "b.tar", samples(range(5, 9)))
    age(tmp_path / "b.tar")
    assert build_index(str(tmp_path)).hash != first


def test_only_new_and_changed_tars_are_read(tmp_path):
    for n in range(3):
        write_tar(tmp_path, f"{n}.tar", samples([n]))
    build_index(str(tmp_path))
    before = times(tmp_path)
    write_tar(tmp_path, "1.tar", samples([1, 11]))
    write_tar(tmp_path, "9.tar", samples([9]))
    index = build_index(str(tmp_path))
    after = times(tmp_path)
    assert {name for name in after if after[name] != before.get(name)} == {"1.tar", "9.tar"}
    assert sorted(keys(index)) == ["0000", "0001", "0002", "0009", "0011"]
    build_index(str(tmp_path), force=True)
    assert all(times(tmp_path)[name] != after[name] for name in after)
    (tmp_path / "0.tar").unlink()
    index = build_index(str(tmp_path))
    assert sorted(keys(index)) == ["0001", "0002", "0009", "0011"]
    assert set(times(tmp_path)) == {"1.tar", "2.tar", "9.tar"}
    parts = set((tmp_path / "_index" / "samples").iterdir())
    build_index(str(tmp_path), IndexConfig(max_pixels=10_000))
    assert len(parts) == len(set((tmp_path / "_index" / "samples").iterdir()) - parts) == 3, (
        "other settings, other parts"
    )


def test_validation_split_is_a_function_of_the_key(tmp_path):
    fraction = 0.3
    expected = {
        f"{n:04d}" for n in range(60) if int(hashlib.sha256(b"%04d" % n).hexdigest()[:16], 16) / 2**64 < fraction
    }
    config = IndexConfig(validation_fraction=fraction)
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    many.mkdir()
    write_tar(one, "train-000000.tar", samples(range(60)))
    for n in range(4):
        write_tar(many, f"part{n}.tar", samples(range(59 - n, -1, -4)))
    for folder in (one, many):
        index = build_index(str(folder), config)
        assert set(keys(index, "val")) == expected
        assert index.counts() == {"train": 60 - len(expected), "val": len(expected), "test": 0}
    assert index.count(lambda present: "questions" in present, "val") == len(expected)
    before = times(many)
    assert build_index(str(many), IndexConfig(validation_fraction=0.0)).counts()["val"] == 0
    assert times(many) == before, "another split needs no tar"
    write_tar(many, "val-000000.tar", samples([99]))
    assert keys(build_index(str(many), config), "val") == ["0099"], "a source's own validation split is kept"


def test_a_group_is_on_one_side_of_the_validation_split(tmp_path):
    entries = [
        entry
        for n in range(60)
        for entry in (
            (f"{n:04d}.jpg", photo(n)),
            (f"{n:04d}.json", json.dumps({"captions": ["c"], "group": f"scene {n % 12}"}).encode()),
        )
    ]
    write_tar(tmp_path, "a.tar", entries[:60])
    write_tar(tmp_path, "b.tar", entries[60:])
    index = build_index(str(tmp_path), IndexConfig(validation_fraction=0.4))
    sides = {split: {int(key) % 12 for key in keys(index, split)} for split in ("train", "val")}
    assert sides["train"] | sides["val"] == set(range(12))
    assert not sides["train"] & sides["val"]
    assert all(sides.values())


def test_assignment_bounds():
    import numpy as np

    hashes = np.array([0, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    assert SplitAssignment(0.5).assign_splits("train", hashes).tolist() == ["val", "val", "train", "train"]
    assert SplitAssignment(0.0).assign_splits("train", hashes).tolist() == ["train"] * 4
    assert SplitAssignment(0.5).assign_splits("test", hashes).tolist() == ["test"] * 4


def test_faults_are_rows_and_neighbours_survive(tmp_path):
    good = build_tar(samples(range(10, 20)))
    write_tar(tmp_path, "a.tar", [*samples([1]), ("2.jpg", photo(2)[:300]), ("2.txt", b"x"), *samples([3])])
    (tmp_path / "b.tar").write_bytes(good[: header_of(good, "0015.jpg")])
    (tmp_path / "c.tar").write_bytes(b"no tar")
    (tmp_path / "d.tar").write_bytes(b"")
    write_tar(tmp_path, "e.tar", samples([30, 31]))
    index = build_index(str(tmp_path), LENIENT)
    assert faults(index) == [
        ("a.tar", "2", "truncated_image"),
        ("b.tar", None, "broken_tar"),
        ("c.tar", None, "broken_tar"),
        ("d.tar", None, "broken_tar"),
    ]
    assert keys(index) == [f"{n:04d}" for n in (1, 3, 10, 11, 12, 13, 14, 30, 31)]
    assert [shard.name for shard in index.shards] == ["a.tar", "b.tar", "e.tar"]
    assert index.quarantine_counts() == {"broken_tar": 3, "truncated_image": 1}
    assert "  broken_tar                   3" in index.report()
    assert "a.tar 2.jpg at byte" in index.report()
    again = build_index(str(tmp_path), LENIENT)
    assert faults(again) == faults(index)
    assert again.hash == index.hash


def test_nothing_is_written_outside_and_nothing_unpickled(tmp_path):
    """A pickle that leaves a trace, names that lead out of the folder, a link that leads in."""
    trace = tmp_path / "trace"
    pickled = b"cos\nmkdir\n(S'%b'\ntR." % str(trace).encode()
    pickle.loads(pickled)  # noqa: S301 - what it would do
    trace.rmdir()
    folder = tmp_path / "tars"
    folder.mkdir()
    hostile: list[Entry | tarfile.TarInfo] = [
        ("../out.jpg", photo(2)), ("../out.json", texts(2)),
        (f"{tmp_path}/absolute.jpg", photo(3)), (f"{tmp_path}/absolute.json", texts(3)),
        link("4.jpg", "/etc/passwd"), ("4.json", texts(4)),
        ("5.jpg", photo(5)), ("5.json", texts(5)), ("5.pkl", pickled),
    ]  # fmt: skip
    write_tar(folder, "a.tar", [*samples([1]), *hostile, *samples([9])])
    index = build_index(str(folder), LENIENT)
    assert [reason for _, _, reason in faults(index)] == ["unsafe_member"] * 4
    assert [record.key for record in ShardReader(index).read("a.tar", [0, 1])] == ["0001", "0009"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tars"]
    assert sorted(path.name for path in folder.iterdir()) == ["_index", "a.tar"]


def test_a_key_in_two_shards_belongs_to_the_first(tmp_path):
    write_tar(tmp_path, "b.tar", [*samples([2]), *samples([1]), *samples([3])])
    write_tar(tmp_path, "a.tar", samples([1]))
    write_tar(tmp_path, "c.tar", samples([3, 4, 1]))
    write_tar(tmp_path, "test-000000.tar", samples([1]))
    index = build_index(str(tmp_path), LENIENT)
    assert faults(index) == [
        ("b.tar", "0001", "duplicate_key"),
        ("c.tar", "0003", "duplicate_key"),
        ("c.tar", "0001", "duplicate_key"),
    ]
    assert keys(index) == ["0001", "0002", "0003", "0004", "0001"]
    assert index.shard("b.tar").sample_counts == {"train": 2}
    assert index.rows("b.tar")["key"].to_pylist() == ["0002", "0003"]
    (tmp_path / "a.tar").unlink()
    before = times(tmp_path)
    index = build_index(str(tmp_path), LENIENT)
    assert [fault[:2] for fault in faults(index)] == [("c.tar", "0003"), ("c.tar", "0001")]
    assert times(tmp_path).items() <= before.items(), "what the first shard held back is there again, without reading"


def test_keys_are_compared_in_passes(tmp_path, monkeypatch):
    for n in range(5):
        write_tar(tmp_path, f"{n}.tar", samples(range(n, n + 3)))
    expected = faults(build_index(str(tmp_path), LENIENT))
    assert len(expected) == 8
    monkeypatch.setattr("pipelines.data.index.repeated_keys._KEYS_PER_PASS", 2)
    assert faults(build_index(str(tmp_path), LENIENT)) == expected


def test_too_many_faults_stop_the_job(tmp_path):
    write_tar(tmp_path, "a.tar", [*samples(range(18)), ("x.txt", b"1"), ("y.jpg", photo(1))])
    index = build_index(str(tmp_path), IndexConfig(max_quarantine_fraction=0.1))
    assert index.quarantine().num_rows == 2
    with pytest.raises(DataError, match=r"2 of 20 samples \(10.0%\).*max_quarantine_fraction = 0.09") as stop:
        build_index(str(tmp_path), IndexConfig(max_quarantine_fraction=0.09))
    assert "missing_image" in str(stop.value)
    assert "y.jpg at byte" in str(stop.value)
    assert index.quarantine().num_rows == 2
    assert Index.open(str(tmp_path)).hash == index.hash, "the index that was good is good"
    build_index(str(tmp_path), IndexConfig(max_quarantine_fraction=0.5, max_quarantine_run=3))
    assert not (tmp_path / "_index" / "quarantine.html").exists()
    with pytest.raises(DataError, match=r"quarantine.parquet and quarantine.html\."):
        build_index(str(tmp_path), IndexConfig(report=True))
    assert "y.jpg" in (tmp_path / "_index" / "quarantine.html").read_text()
    with pytest.raises(DataError, match=r"2 faults in a row, with data\.index.max_quarantine_run = 2"):
        build_index(str(tmp_path), IndexConfig(max_quarantine_fraction=0.5, max_quarantine_run=2))


def test_nothing_to_index(tmp_path):
    with pytest.raises(DataError, match=r"no \.tar in .*import data first"):
        build_index(str(tmp_path))
    with pytest.raises(DataError, match=r"no \.tar in .*import data first"):
        build_index(str(tmp_path / "missing"))
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"subfolders \(train\)"):
        build_index(str(tmp_path))
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match="decompress"):
        build_index(str(tmp_path))
    write_tar(tmp_path, "a.tar", [("README", b"x")])
    with pytest.raises(DataError, match="no valid sample"):
        build_index(str(tmp_path), LENIENT)


def test_file_uri_and_relative_folder(tmp_path, monkeypatch):
    write_tar(tmp_path, "a.tar", samples([1]))
    index = build_index(f"file://{tmp_path}")
    assert keys(Index.open(str(tmp_path))) == ["0001"]
    monkeypatch.chdir(tmp_path.parent)
    relative = Index.open(tmp_path.name)
    monkeypatch.chdir("/")
    assert keys(relative) == ["0001"]
    assert relative.hash == index.hash


def test_img2dataset_tars(tmp_path):
    meta = {"caption": "a cat", "url": "http://x", "width": 48, "status": "success", "key": "000000000"}
    entries = []
    for n in range(3):
        key = f"{n:09d}"
        entries += [(f"{key}.jpg", photo(n)), (f"{key}.txt", b"a cat"), (f"{key}.json", json.dumps(meta).encode())]
    write_tar(tmp_path, "00000.tar", entries)
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "00000.parquet").write_bytes(b"")
    index = build_index(str(tmp_path), IndexConfig(validation_fraction=0.0))
    assert index.counts() == {"train": 3, "val": 0, "test": 0}
    assert index.shards[0].captions == {"train": 3}
    assert index.shards[0].questions == {"train": 0}


def test_webdataset_tars_and_links_to_tars(tmp_path):
    import webdataset

    (tmp_path / "store").mkdir()
    (tmp_path / "tars").mkdir()
    with webdataset.TarWriter(str(tmp_path / "store" / "x.tar")) as writer:
        writer.write({"__key__": "a/1", "jpg": photo(1), "json": {"captions": ["c"]}})
        writer.write({"__key__": "a/2", "png": photo(2, form="PNG"), "txt": "caption"})
    (tmp_path / "tars" / "train-000000.tar").symlink_to(tmp_path / "store" / "x.tar")
    index = build_index(str(tmp_path / "tars"), IndexConfig(validation_fraction=0.0))
    assert index.quarantine().num_rows == 0
    assert keys(index) == ["a/1", "a/2"]


def test_interrupted_index_is_no_index_and_goes_on(tmp_path, monkeypatch):
    """The job is killed between two shards: what it did is kept, and nothing opens before it is complete."""
    for n in range(3):
        write_tar(tmp_path, f"{n}.tar", samples([n]))
    folder = StorageFolder(str(tmp_path))
    for file in folder.files()[:2]:
        index_shard(folder, file, IndexConfig(), SplitAssignment(0.1))
    with pytest.raises(DataError, match="has no index; run the index job"):
        Index.open(str(tmp_path))
    (tmp_path / "_index" / "samples" / ".1.tar.0123456789abcdef-01234567.parquet.77.partial").write_bytes(b"PAR1")
    (tmp_path / "_index" / "samples" / "2.tar.parquet").write_bytes(b"of format 1")
    before = times(tmp_path)
    index = build_index(str(tmp_path))
    after = times(tmp_path)
    assert {name: after[name] for name in ("0.tar", "1.tar")}.items() <= before.items()
    assert set(after) == {"0.tar", "1.tar", "2.tar"}
    assert len(keys(index)) == 3


def test_a_version_stays_while_newer_ones_are_made(tmp_path):
    write_tar(tmp_path, "train-0.tar", samples([1, 2]))
    write_tar(tmp_path, "train-1.tar", samples([3]))
    first = build_index(str(tmp_path))
    write_tar(tmp_path, "train-2.tar", samples([4]))
    second = build_index(str(tmp_path))
    assert Index.open(str(tmp_path)).hash == second.hash != first.hash
    for version in (first, Index.open(str(tmp_path), first.hash)):
        assert version.counts() == first.counts()
        assert [record.key for record in ShardReader(version).read("train-0.tar", [0, 1])] == ["0001", "0002"]
        assert "train-2.tar" not in {shard.name for shard in version.shards}
    age(tmp_path / "train-0.tar")
    build_index(str(tmp_path))
    assert sorted(keys(first)) == ["0001", "0002", "0003"], "a touched tar is the same tar"
    write_tar(tmp_path, "train-1.tar", samples([5]))
    third = build_index(str(tmp_path))
    assert first.rows("train-0.tar").num_rows == 2
    with pytest.raises(DataError, match=r"'train-1\.tar' was changed or removed since the index was made"):
        first.rows("train-1.tar")
    assert sorted(keys(third)) == ["0001", "0002", "0004", "0005"]
    with pytest.raises(DataError, match="has no version 000000000000 of its index"):
        Index.open(str(tmp_path), "0" * 64)


def test_the_oldest_versions_go(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_VERSIONS", 2)
    hashes = []
    for number in range(3):
        write_tar(tmp_path, f"{number}.tar", samples([number]))
        hashes.append(build_index(str(tmp_path)).hash)
    hashes.append(build_index(str(tmp_path)).hash)
    assert {path.name.partition(".")[0] for path in (tmp_path / "_index" / "versions").iterdir()} == set(hashes[1:])
    with pytest.raises(DataError, match=f"has no version {hashes[0][:12]}"):
        Index.open(str(tmp_path), hashes[0])


def test_what_is_no_index_is_not_opened(tmp_path):
    write_tar(tmp_path, "a.tar", samples([1, 2]))
    index = build_index(str(tmp_path))
    newest, version = tmp_path / "_index" / "index.json", tmp_path / "_index" / "versions" / f"{index.hash}.parquet"
    with pytest.raises(DataError, match=r"no samples of shard 'b\.tar'"):
        index.rows("b.tar")
    good = newest.read_bytes()
    for bad in (good[:50], b"[]", b'{"format": 5}'):
        newest.write_bytes(bad)
        with pytest.raises(DataError, match=r"cannot be read|has format"):
            Index.open(str(tmp_path))
    newest.write_bytes(good.replace(b'"format": 5', b'"format": 99'))
    with pytest.raises(DataError, match="format 99, this version reads 5; run the index job"):
        Index.open(str(tmp_path))
    newest.write_bytes(good)
    version.rename(version.with_name(f"{'0' * 64}.parquet"))
    with pytest.raises(DataError, match="was changed"):
        Index.open(str(tmp_path), "0" * 64)
    with pytest.raises(DataError, match=f"has no version {index.hash[:12]}"):
        Index.open(str(tmp_path))
    assert build_index(str(tmp_path)).hash == index.hash
    next((tmp_path / "_index" / "samples").iterdir()).unlink()
    with pytest.raises(DataError, match="is gone"):
        index.rows("a.tar")


def test_an_index_of_another_format_is_made_anew(tmp_path, caplog):
    write_tar(tmp_path, "a.tar", samples([1, 2]))
    (tmp_path / "_index" / "samples").mkdir(parents=True)
    (tmp_path / "_index" / "index.json").write_text('{"format": 2, "hash": "abc"}')
    (tmp_path / "_index" / "samples" / "a.tar.0123456789abcdef-01234567.parquet").write_bytes(b"of format 2")
    with pytest.raises(DataError, match="has format 2, this version reads 5; run the index job"):
        Index.open(str(tmp_path))
    assert build_index(str(tmp_path)).counts()["train"] == 2
    (line,) = [record.getMessage() for record in caplog.records if record.name == build.__name__]
    assert line == f"the index of {tmp_path} has format 2 and is built anew, in format 5"
    assert len(list((tmp_path / "_index" / "samples").iterdir())) == 1, "nothing of the old format stays"
    caplog.clear()
    build_index(str(tmp_path))
    assert not [record for record in caplog.records if record.name == build.__name__]


def test_a_bad_delivery_leaves_the_index_that_was_there(tmp_path):
    write_tar(tmp_path, "train-0.tar", samples(range(8)))
    write_tar(tmp_path, "train-1.tar", samples(range(8, 16)))
    index = build_index(str(tmp_path))
    write_tar(tmp_path, "train-2.tar", [(f"{n}.{kind}", b"bad") for n in range(5) for kind in ("png", "json")])
    with pytest.raises(DataError, match=r"faults in 5 of 21 .*\(most in 'train-2\.tar': 5 of 5\).* stays in use"):
        build_index(str(tmp_path))
    stays = Index.open(str(tmp_path))
    assert stays.hash == index.hash
    assert len(ShardReader(stays).read("train-1.tar", range(8))) == 8
    assert stays.quarantine().num_rows == 0
    last = pq.read_table(tmp_path / "_index" / "quarantine.parquet")
    assert set(last["shard"].to_pylist()) == {"train-2.tar"}
    (tmp_path / "train-2.tar").unlink()
    assert build_index(str(tmp_path)).hash == index.hash


def test_changed_texts_of_a_tar_of_the_same_size_and_time(tmp_path):
    path = write_tar(tmp_path, "a.tar", samples(range(4)))
    index = build_index(str(tmp_path))
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b'"answer": "yes"', b'"answer": "not"'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for inputs in (("image",), ()):
        with pytest.raises(DataError, match=r"'0002' .* is not what was indexed.* data\.index\.force=true"):
            ShardReader(index).read("a.tar", [2], inputs=inputs)
    assert build_index(str(tmp_path)).hash == index.hash, "nothing tells that it is another"
    forced = build_index(str(tmp_path), IndexConfig(force=True))
    assert forced.hash != index.hash
    assert ShardReader(forced).read("a.tar", [2])[0].texts.questions[0].answer == "not"


@pytest.mark.timeout(60)
def test_what_is_called_tar_and_is_none_is_a_row(tmp_path):
    write_tar(tmp_path, "a.tar", samples([1]))
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "zero.tar").symlink_to("/dev/zero")
    (tmp_path / "linked.tar").symlink_to(tmp_path)
    index = build_index(str(tmp_path), LENIENT)
    assert keys(index) == ["0001"]
    rows = {row["shard"]: row for row in index.quarantine().to_pylist()}
    assert set(rows) == {"pipe.tar", "folder.tar", "zero.tar", "linked.tar"}
    assert {row["reason"] for row in rows.values()} == {"unreadable_shard"}
    for name, what in (("pipe", "named pipe"), ("folder", "folder"), ("zero", "device"), ("linked", "folder")):
        assert what in rows[f"{name}.tar"]["detail"]


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path):
    odd = "\x1b]0;title\x07\r\x9b2J\u202e"
    write_tar(
        tmp_path, f"a{odd}.tar", [*samples([1]), (f"k{odd}.jpg", b"bad"), (f"k{odd}.txt", b"a"), (f"x.{odd}", b"")]
    )
    report = build_index(str(tmp_path), LENIENT).report()
    assert all(line.isprintable() for line in report.splitlines())
    assert "\\x1b]0;title\\x07\\r\\x9b2J\\u202e.jpg" in report


def test_what_no_sample_is_made_of_is_told(tmp_path):
    write_tar(tmp_path, "a.tar", [*samples([1]), ("0001.md5", b"1"), ("._0001.jpg", b"")])
    write_tar(
        tmp_path, "b.tar", [*samples([2]), ("0002.md5", b"1"), ("photo.v1.jpg", photo(3)), ("photo.v1.txt", b"a")]
    )
    index = build_index(str(tmp_path), LENIENT)
    assert index.skipped_member_counts() == {".md5": 2, "hidden": 1, ".v1.jpg": 1, ".v1.txt": 1}
    assert "no part of a sample: .md5 2, .v1.jpg 1, .v1.txt 1, hidden 1" in index.report().splitlines()
    assert faults(index) == [("b.tar", "photo", "unknown_member")]
    assert json.loads((tmp_path / "_index" / "index.json").read_bytes())["passed_over"] == index.skipped_member_counts()
    assert build_index(str(tmp_path), LENIENT).skipped_member_counts() == index.skipped_member_counts(), (
        "also where no tar is read again"
    )


def test_a_set_with_longer_texts_is_read_by_its_own_limits(tmp_path):
    write_tar(tmp_path, "a.tar", [("1.jpg", photo(1)), ("1.txt", b"a" * 20_000)])
    with pytest.raises(DataError, match=r"(?s)text_too_long .*data\.index\.max_letters allows 10000"):
        build_index(str(tmp_path), LENIENT)
    index = build_index(str(tmp_path), IndexConfig(max_letters=20_000))
    assert ShardReader(index).read("a.tar", [0])[0].texts.captions == ("a" * 20_000,)


def test_unreadable_shard_is_a_row_and_is_tried_again(tmp_path):
    write_tar(tmp_path, "a.tar", samples([1]))
    (tmp_path / "b.tar").symlink_to(tmp_path / "c")
    index = build_index(str(tmp_path), LENIENT)
    assert faults(index) == [("b.tar", None, "unreadable_shard")]
    assert keys(index) == ["0001"]
    (tmp_path / "c").write_bytes(build_tar(samples([2])))
    assert keys(build_index(str(tmp_path), LENIENT)) == ["0001", "0002"]


class FlakyFile(io.BytesIO):
    """Fails or ends early at some reads, like a store over a bad line."""

    def __init__(self, data: bytes, plan: list[str]) -> None:
        super().__init__(data)
        self.plan = plan

    def read(self, size: int | None = -1) -> bytes:
        match self.plan.pop(0) if self.plan else "":
            case "error":
                raise ConnectionResetError("reset by peer")
            case "early":
                return b""
            case "short":
                return super().read(700)
        return super().read(size)


def opens(monkeypatch: pytest.MonkeyPatch, folder: StorageFolder, make: Callable[[], FlakyFile]) -> None:
    """Let the folder's tars open as these files."""
    fs = folder._filesystem_and_path[0]
    opened = fs.open
    monkeypatch.setattr(
        fs, "open", lambda path, *args, **kw: make() if path.endswith(".tar") else opened(path, *args, **kw)
    )


def test_transient_read_errors_lose_nothing(tmp_path, monkeypatch):
    path = write_tar(tmp_path, "a.tar", samples(range(30)))
    folder = StorageFolder(str(tmp_path))
    plan = ["short", "error", "short", "early", "error", "short"]
    opens(monkeypatch, folder, lambda: FlakyFile(path.read_bytes(), plan))
    summary = index_shard(folder, folder.files()[0], IndexConfig(), SplitAssignment(0.0))
    assert plan == []
    assert (total_sample_count(summary), summary["faults"]) == (30, 0)
    assert summary["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_shard_that_cannot_be_read_is_said_so(tmp_path, monkeypatch):
    write_tar(tmp_path, "a.tar", samples([1]))
    folder = StorageFolder(str(tmp_path))
    opens(monkeypatch, folder, lambda: FlakyFile(b"", ["error"] * 9))
    summary = index_shard(folder, folder.files()[0], IndexConfig(), SplitAssignment(0.0))
    assert summary == {"name": "a.tar", "unreadable": "ConnectionResetError: reset by peer"}
    assert not (tmp_path / "_index").exists()


def test_opening_needs_no_ray(tmp_path):
    write_tar(tmp_path, "a.tar", samples([1]))
    build_index(str(tmp_path))
    code = (
        "import sys; from pipelines.data.index.index import Index; index = Index.open(sys.argv[1]);"
        "index.rows('a.tar'); index.report(); assert not {'ray', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[4])


def test_remote_folder_without_ray():
    """The same code on a file system that is not local."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/index-test/a.tar", build_tar(samples([1, 2])))
    folder = StorageFolder("memory://index-test")
    summary = index_shard(folder, folder.files()[0], IndexConfig(), SplitAssignment(0.0))
    assert total_sample_count(summary) == 2
    assert [IndexPartName.parse(file.name).shard for file in folder.files("_index/samples")] == ["a.tar"]
    assert folder.read_ranges("a.tar", [(512, 3), (0, 8)]) == [photo(1)[:3], b"0001.jpg"]
    fs.rm("/index-test", recursive=True)


TEXTS_ALONE = IndexConfig(inputs=("text",), validation_fraction=0.0)


def test_texts_without_images(tmp_path):
    write_tar(tmp_path, "train-000000.tar", [(f"{n}.json", texts(n)) for n in range(4)])
    write_tar(tmp_path, "train-000001.tar", [("3.txt", b"again"), ("4.txt", b"a caption")])
    with pytest.raises(
        DataError,
        match=r"has no valid sample; .*do without the input .image., set data\.index\.inputs .* or to \[\"text\"\]",
    ):
        build_index(str(tmp_path), LENIENT)
    index = build_index(str(tmp_path), TEXTS_ALONE.model_copy(update={"max_quarantine_fraction": 0.5}))
    assert (index.inputs, index.input_requirements) == ({}, {"text": True})
    assert index.counts() == {"train": 5, "val": 0, "test": 0}
    (repeated,) = index.quarantine().to_pylist()
    assert (repeated["key"], repeated["reason"], repeated["offset"]) == ("3", "duplicate_key", 512)
    reader = ShardReader(index)
    records = reader.read("train-000000.tar", [2, 0])
    assert [(r.key, dict(r.inputs), set(r.present), r.texts.captions) for r in records] == [
        ("2", {}, {"captions", "questions"}, ("picture 2",)), ("0", {}, {"captions", "questions"}, ("picture 0",)),
    ]  # fmt: skip
    assert reader.read_texts("train-000001.tar", [0])[0].captions == ("a caption",)


def test_what_samples_are_made_of_is_part_of_what_an_index_is(tmp_path):
    write_tar(tmp_path, "train-000000.tar", samples(range(4)))
    pairs = build_index(str(tmp_path))
    found = keys(pairs)
    alone = build_index(str(tmp_path), IndexConfig(inputs=("text",)))
    assert pairs.hash != alone.hash
    assert keys(alone) == found
    assert "image.sha256" not in alone.rows("train-000000.tar").column_names
    assert build_index(str(tmp_path)).hash == pairs.hash
    assert (pairs.inputs, pairs.input_requirements) == ({"image": "image"}, {"image": True, "text": True})
