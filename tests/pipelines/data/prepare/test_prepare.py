"""A preparation as a whole: what it writes, what it drops and why, and that nothing but source and settings matters."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.prepare.filters import DropReason
from pipelines.data.prepare.run import prepare_tars
from pipelines.data.tars.reader import ShardReader
from pipelines.errors import DataError
from pipelines.storage.folder import StorageFolder
from tests.pipelines.data.prepare.conftest import decoded, encoded, picture
from tests.pipelines.data.tar_maker import Entry, photo, series, write_tar

Here = Callable[..., None]

CONFIG = PrepareConfig(
    min_side=20, max_aspect=4.0, min_chars=3, near_duplicates=4, longest_side=100, samples_per_shard=4
)
"""Settings that give each of the source's faults its reason."""


def entries(key: str, image: bytes, *captions: str, **more: object) -> list[Entry]:
    return [
        (f"{key}.jpg", image),
        (f"{key}.json", json.dumps({"captions": captions or [f"picture {key}"], **more}).encode()),
    ]


def wide(seed: int, **settings: Any) -> bytes:
    """A picture that is to be shrunk."""
    return encoded(picture(seed, (160, 120)), **settings)


def half_of_png(data: bytes) -> bytes:
    """A PNG with half of its pixels, whose chunks and checksums are all as they should be."""
    start = data.index(b"IDAT")
    (length,) = struct.unpack(">I", data[start - 4 : start])
    chunk = b"IDAT" + data[start + 4 : start + 4 + length // 2]
    ending = b"\0\0\0\0IEND\xaeB`\x82"
    return data[: start - 4] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + ending


def write_source(folder: Path) -> Index:
    """Train samples in three shards, and a fault for each reason that the default language settings allow."""
    folder.mkdir()
    small = [entries(f"s{n}", encoded(picture(n, (80, 60)))) for n in range(10, 16)]
    half = half_of_png(encoded(picture(30, (160, 120)), "PNG"))
    train = [
        [
            *entries("a1", wide(1), "first of all", "no", url="http://x/1"),
            *entries("a2", encoded(picture(2, (19, 30)))),
            *entries("a3", encoded(picture(3, (100, 20)))),
            *small[0],
            *small[1],
        ],
        [
            *entries("b1", wide(1), "first of all", "another text"),  # the image of a1
            *entries("b2", wide(1, quality=50)),  # looks like a1
            *entries("b3", wide(21)),  # the image of a test sample
            *entries("b4", encoded(picture(22, (90, 66)), quality=70)),  # looks like a val sample
            *small[2],
        ],
        [
            *entries("c1", wide(4), "no", "a"),
            *entries("c2", half),  # begins and ends well
            *entries("d.d/c3", wide(5)),
            *small[3],
            *small[4],
        ],
    ]
    for number, shard in enumerate(train):
        write_tar(folder, f"train-{number:06d}.tar", shard)
    write_tar(folder, "test-000000.tar", [*entries("t1", wide(21)), *entries("t2", wide(21)), *small[5]])
    write_tar(folder, "val-000000.tar", [*entries("v1", wide(22)), *entries("v2", b"no image")])
    return build_index(str(folder), IndexConfig(verify="header", max_quarantine_fraction=0.5))


@pytest.fixture
def source(tmp_path: Path, here: Here) -> Index:
    here()
    return write_source(tmp_path / "source")


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all that does not say where or when it was made."""
    own = (*folder.glob("*.tar"), *folder.glob("_prepare/**/*.parquet"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in own}


def lineage(folder: Path) -> dict[str, list[dict[str, Any]]]:
    files = sorted((folder / "_prepare" / "lineage").iterdir())
    return {file.name.removesuffix(".parquet"): pq.read_table(file).to_pylist() for file in files}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_each_reason_and_only_these(source: Index, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = prepare_tars(source.tars, CONFIG.model_copy(update={"out": str(out)}))
    dropped = pq.read_table(out / "_prepare" / "dropped.parquet").to_pylist()
    found = [(row["shard"][:12], row["key"], row["reason"], row["original_key"]) for row in dropped]
    assert found == [
        ("train-000000", "a2", "small", None),
        ("train-000000", "a3", "elongated", None),
        ("train-000001", "b1", "duplicate", "a1"),
        ("train-000001", "b2", "near_duplicate", "a1"),
        ("train-000001", "b3", "duplicate", "t1"),
        ("train-000001", "b4", "near_duplicate", "v1"),
        ("train-000002", "c1", "text_length", None),
        ("train-000002", "c2", "undecodable", None),
        ("train-000002", "d.d/c3", "unwritable", None),
    ]
    assert dropped[2]["detail"] == "has the image of a1 of train, in train-000000.tar"
    assert dropped[5]["detail"] == "looks like v1 of val, in val-000000.tar"
    assert summary.before == {"train": 15, "val": 1, "test": 3}
    assert summary.after == {"train": 6, "val": 1, "test": 3}
    assert summary.dropped["duplicate"] == {"train": 2, "val": 0, "test": 0}
    assert set(summary.dropped) == set(DropReason)
    assert summary.quarantined == {"undecodable_image": 1}
    assert (summary.joined, summary.texts_left_out, summary.rewritten) == (1, 1, 4)
    assert (summary.shards_before, summary.shards_after) == (5, 4)
    assert summary.bytes_after == sum(path.stat().st_size for path in out.glob("*.tar"))

    table = str(summary)
    for reason in DropReason:
        assert re.search(rf"^{reason} +\d", table, re.MULTILINE)
    assert "1 were in quarantine and not read: 1 undecodable_image" in table


def test_what_stays_is_indexed_and_says_where_it_is_from(source: Index, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_tars(source.tars, CONFIG.model_copy(update={"out": str(out)}))
    index = Index.open(str(out))
    assert index.counts() == {"train": 6, "val": 1, "test": 3}
    assert index.quarantine().num_rows == 0
    assert sorted(shard.name for shard in index.shards) == [
        "test-000000.tar",
        "train-000000.tar",
        "train-000001.tar",
        "val-000000.tar",
    ]
    origin = {row["key"]: (shard.name, row) for shard in source.shards for row in source.rows(shard.name).to_pylist()}
    seen = []
    for shard, rows in lineage(out).items():
        stored = members(out / shard)
        assert [f"{row['key']}.json" for row in rows] == list(stored)[1::2]
        for row in rows:
            source_shard, of_source = origin[row["key"]]
            expected = {"shard": source_shard, "key": row["key"], "sha256": of_source["image.sha256"]}
            assert {name: row[f"source_{name}"] for name in expected} == expected
            assert json.loads(stored[f"{row['key']}.json"])["prepared_from"] == expected
            image = stored[f"{row['key']}.jpg"]
            same = hashlib.sha256(image).hexdigest() == of_source["image.sha256"]
            assert same is not row["rewritten"]
            assert same == (max(of_source["image.width"], of_source["image.height"]) <= 100)
            assert decoded(image).size == (row["width"], row["height"])
            assert max(row["width"], row["height"]) <= 100
            seen.append(row["key"])
            assert row["joined"] == ([{"shard": "train-000001.tar", "key": "b1"}] if row["key"] == "a1" else [])
    assert sorted(seen) == ["a1", "s10", "s11", "s12", "s13", "s14", "s15", "t1", "t2", "v1"]
    a1 = json.loads(members(out / "train-000000.tar")["a1.json"])
    assert a1["captions"] == ["first of all", "another text"], "the texts of its duplicate; and 'no' is too short"
    assert a1["url"] == "http://x/1"
    assert not (out / "_prepare" / "work").exists()


def test_the_page_is_whole_and_shows_every_reason(source: Index, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_tars(source.tars, CONFIG.model_copy(update={"out": str(out)}))
    page = (out / "_prepare" / "report.html").read_text()
    for reason in DropReason:
        assert f"<th>{reason}</th>" in page
    shown = [reason for reason in DropReason if f"<h2>{reason} " in page]
    assert set(DropReason) - set(shown) == {DropReason.LANGUAGE}
    addresses = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 9 + 4 - 1, "a picture for each, two for a duplicate, none of what cannot be decoded"
    assert page.count("no picture") == 1


def test_texts_cannot_write_the_page(tmp_path: Path, here: Here) -> None:
    here()
    folder = tmp_path / "source"
    folder.mkdir()
    write_tar(folder, "a.tar", [*entries("<b>", wide(1), "<script>x</script>"), *entries("z", wide(2, quality=10))])
    tars = build_index(str(folder)).tars
    prepare_tars(tars, PrepareConfig(out=str(tmp_path / "out"), max_chars=10))
    page = (tmp_path / "out" / "_prepare" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "<b>&lt;b&gt;</b>" in page


def test_tasks_of_ray_in_any_number_give_the_same_bytes(tmp_path: Path, here: Here, ray_local: None) -> None:
    from pipelines.data.index.shard_pass import map_shards

    index = write_source(tmp_path / "source")
    made = {}
    for name, options in (("one", {"concurrency": 1}), ("two", {"concurrency": 2})):

        def some(items: Sequence[Any], work: Any, options: Mapping[str, Any] = options) -> Iterator[Mapping[str, Any]]:
            return map_shards(items, work, **options)

        here(some)
        prepare_tars(index.tars, CONFIG.model_copy(update={"out": str(tmp_path / name)}))
        made[name] = contents(tmp_path / name)
    here()
    prepare_tars(index.tars, CONFIG.model_copy(update={"out": str(tmp_path / "last first")}))
    assert len(made["one"]) == 4 + 4 + 1
    assert made["one"] == made["two"] == contents(tmp_path / "last first")


class DiedError(Exception):
    """The job ends here."""


@pytest.mark.parametrize("after", [0, 2, 5, 7, 9, 12])
def test_an_interrupted_job_goes_on_where_it_was(
    source: Index, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The passes have 5, 4 and 4 tasks; the job dies when some of them are done."""
    prepare_tars(source.tars, CONFIG.model_copy(update={"out": str(tmp_path / "calm")}))
    left = after

    def dying(items: Sequence[Any], work: Any) -> Iterator[Mapping[str, Any]]:
        nonlocal left
        for item in items:
            if not left:
                raise DiedError
            left -= 1
            yield work(item)

    here(dying)
    out = tmp_path / "out"
    config = CONFIG.model_copy(update={"out": str(out)})
    with pytest.raises(DiedError):
        prepare_tars(source.tars, config)
    with pytest.raises(DataError, match="has no index"):
        Index.open(str(out))
    done = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    (out / ".train-000000.tar.77.partial").write_bytes(b"half of a tar")
    (out / "film.mp4.partial").write_bytes(b"of another program")
    here()
    written: list[str] = []
    write = StorageFolder.write

    def watched(folder: StorageFolder, name: str, data: bytes) -> None:
        written.append(name)
        write(folder, name, data)

    monkeypatch.setattr(StorageFolder, "write", watched)
    prepare_tars(source.tars, config)
    assert list(out.rglob("*.partial")) == [out / "film.mp4.partial"]
    parts = {name for name in done if name.startswith(("_prepare/work/", "_prepare/lineage/")) or name[-4:] == ".tar"}
    assert bool(parts) == bool(after)
    assert not parts & set(written), "nothing that was done is done again"
    assert contents(out) == contents(tmp_path / "calm")
    assert Index.open(str(out)).hash == Index.open(str(tmp_path / "calm")).hash


def test_two_jobs_do_not_prepare_one_folder_at_once(source: Index, tmp_path: Path, here: Here) -> None:
    out = tmp_path / "out"
    config = CONFIG.model_copy(update={"out": str(out)})
    second: list[str] = []

    def beside(items: Sequence[Any], work: Any) -> Iterator[Mapping[str, Any]]:
        with pytest.raises(DataError, match=rf"another job is preparing '{out}'; wait") as refused:
            prepare_tars(source.tars, config)
        second.append(str(refused.value))
        yield from map(work, items)

    here(beside)
    first = prepare_tars(source.tars, config)
    assert second
    assert prepare_tars(source.tars, config) == first


def test_a_finished_job_does_nothing_and_another_is_refused(source: Index, tmp_path: Path, here: Here) -> None:
    out = tmp_path / "out"
    config = CONFIG.model_copy(update={"out": str(out)})
    first = prepare_tars(source.tars, config)

    def none(items: Sequence[Any], work: Any) -> Iterator[Mapping[str, Any]]:
        raise AssertionError("nothing is to be done")

    here(none)
    assert prepare_tars(source.tars, config) == first
    with pytest.raises(DataError, match=r"another preparation \(prepare.quality is 90 there and 50 here\); choose"):
        prepare_tars(source.tars, config.model_copy(update={"quality": 50}))
    with pytest.raises(DataError, match=r"prepare.out is data.tars itself"):
        prepare_tars(source.tars, config.model_copy(update={"out": source.tars}))
    assert not (Path(source.tars) / "_prepare").exists(), "a foreign folder is left as it is"
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "x.tar").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds x.tar, which no preparation wrote; choose another folder"):
        prepare_tars(source.tars, config.model_copy(update={"out": str(tmp_path / "strange")}))
    here()
    write_tar(Path(source.tars), "train-000009.tar", entries("new", wide(50)))
    build_index(source.tars, IndexConfig(verify="header", max_quarantine_fraction=0.5))
    with pytest.raises(DataError, match=r"of other data: the index of data.tars is another one"):
        prepare_tars(source.tars, config)


def test_bad_sources(tmp_path: Path, here: Here) -> None:
    here()
    folder = tmp_path / "source"
    folder.mkdir()
    config = PrepareConfig(out=str(tmp_path / "out"), min_side=1000)
    write_tar(folder, "a.tar", [*entries("x", wide(1)), *entries("y", wide(2))])
    with pytest.raises(DataError, match="has no index; run the index job"):
        prepare_tars(str(folder), config)
    build_index(str(folder))
    with pytest.raises(DataError, match=r"all samples of .* would be dropped; 2 small, as 'x': 160 x 120 pixels"):
        prepare_tars(str(folder), config)
    write_tar(folder, "a.tar", [*entries("x", wide(3)), *entries("y", wide(2))])
    with pytest.raises(DataError, match="the shard has changed: run the index job again"):
        prepare_tars(str(folder), PrepareConfig(out=str(tmp_path / "other"), longest_side=50))


def test_splits_by_hash_are_kept_as_shards(tmp_path: Path, here: Here) -> None:
    """What the index of the source calls validation stays that, whatever the settings of the prepared one are."""
    here()
    folder = tmp_path / "source"
    folder.mkdir()
    write_tar(folder, "a.tar", [entry for n in range(40) for entry in entries(f"{n:03d}", wide(n))])
    for fraction in (0.3, 0.0):
        source = build_index(str(folder), IndexConfig(validation_fraction=fraction))
        out = tmp_path / f"out {fraction}"
        prepare_tars(source.tars, PrepareConfig(out=str(out)), IndexConfig(validation_fraction=0.5))
        expected = {row["key"]: row["split"] for row in source.rows("a.tar").to_pylist()}
        prepared = Index.open(str(out))
        rows = [row for shard in prepared.shards for row in prepared.rows(shard.name).to_pylist()]
        assert {row["key"]: row["split"] for row in rows} == expected
        names = {shard.name for shard in prepared.shards}
        assert names == ({"train-000000.tar", "val-000000.tar"} if fraction else {"train-000000.tar"})


def test_prepared_twice(tmp_path: Path, here: Here) -> None:
    """What was prepared can be prepared again, and keeps where it came from at first."""
    here()
    folder = tmp_path / "source"
    folder.mkdir()
    write_tar(folder, "a.tar", entries("x", wide(1)))
    build_index(str(folder), IndexConfig(validation_fraction=0.0))
    prepare_tars(str(folder), PrepareConfig(out=str(tmp_path / "one"), longest_side=80))
    prepare_tars(str(tmp_path / "one"), PrepareConfig(out=str(tmp_path / "two"), longest_side=40))
    stored = members(tmp_path / "two" / "train-000000.tar")
    second = json.loads(stored["x.json"])["prepared_from"]
    assert second["prepared_from"] == {
        "shard": "a.tar",
        "key": "x",
        "sha256": hashlib.sha256(wide(1)).hexdigest(),
    }
    assert second["sha256"] == hashlib.sha256(members(tmp_path / "one" / "train-000000.tar")["x.jpg"]).hexdigest()
    assert decoded(stored["x.jpg"]).size == (40, 30)


def test_real_photographs(tmp_path: Path, here: Here, shared_data: Callable[[str], Path]) -> None:
    """Photographs, some of them again in another size and quality: those go, and nothing else."""
    here()
    (folder := tmp_path / "source").mkdir()
    photos: list[Entry] = []
    copies: list[Entry] = []
    with tarfile.open(shared_data("flickr8k-subset") / "flickr8k_images.tar") as tar:
        for number, member in enumerate([m for m in tar if m.isfile()][:60]):
            file = tar.extractfile(member)
            assert file is not None
            image = file.read()
            photos += entries(f"p{number:02d}", image)
            if number % 10 == 0:
                again = Image.open(io.BytesIO(image)).resize((180, 180), Image.Resampling.LANCZOS)
                copies += entries(f"q{number:02d}", encoded(again, quality=75))
    write_tar(folder, "test-000000.tar", photos[:40])
    write_tar(folder, "train-000000.tar", photos[40:])
    write_tar(folder, "train-000001.tar", copies)
    source = build_index(str(folder), IndexConfig(validation_fraction=0.0))
    summary = prepare_tars(source.tars, PrepareConfig(out=str(tmp_path / "out"), near_duplicates=4, longest_side=128))
    assert summary.after == {"train": 40, "val": 0, "test": 20}
    assert summary.dropped["near_duplicate"] == {"train": 6, "val": 0, "test": 0}
    assert summary.rewritten == 60
    assert summary.bytes_after < summary.bytes_before / 2
    prepared = Index.open(str(tmp_path / "out"))
    records = ShardReader(prepared).read("train-000000.tar", range(40))
    assert {decoded(record.inputs["image"]).size for record in records} == {(128, 128)}


def test_a_folder_that_is_not_local(source: Index) -> None:
    import fsspec

    out = "memory://prepared"
    summary = prepare_tars(source.tars, CONFIG.model_copy(update={"out": out}))
    assert Index.open(out).counts() == summary.after == {"train": 6, "val": 1, "test": 3}
    assert not [file for file in fsspec.filesystem("memory").find("/prepared") if "/work/" in file]
    fsspec.filesystem("memory").rm("/prepared", recursive=True)


def test_texts_alone_are_not_prepared(tmp_path: Path, ray_local: None) -> None:
    (tmp_path / "said").mkdir()
    write_tar(tmp_path / "said", "train-000000.tar", [(f"{n}.txt", b"a text") for n in range(4)])
    build_index(str(tmp_path / "said"), IndexConfig(inputs=("text",)))
    with pytest.raises(DataError, match=r'images with texts can be prepared, .*said were indexed as \["text"\]'):
        prepare_tars(str(tmp_path / "said"), CONFIG.model_copy(update={"out": str(tmp_path / "out")}))
    assert not (tmp_path / "out").exists()


def test_other_inputs_keep_their_bytes(tmp_path: Path, here: Here) -> None:
    here()
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    train = [
        *entries("a", wide(1)), ("a.imu.npy", series(1)),
        *entries("b", wide(2)), ("b.imu.csv", b"t,x\n1,2\n"), ("b.left.jpg", photo(3)),
        *entries("c", wide(4)),
        *entries("d", wide(1), "the same image, another series"), ("d.imu.npy", series(2)),
        *entries("e", wide(1), "the same"), ("e.imu.npy", series(1)),
    ]  # fmt: skip
    write_tar(source, "train-000000.tar", train)
    build_index(str(source), IndexConfig(inputs=("image", "text", "imu?", "left?"), validation_fraction=0.0))
    summary = prepare_tars(str(source), PrepareConfig(out=str(out), longest_side=100))
    assert (summary.after["train"], summary.joined, summary.dropped["duplicate"]["train"]) == (4, 1, 1)
    written = members(out / "train-000000.tar")
    assert set(written) == {name for name, _ in train if not name.startswith("e.")}
    for key in ("a.imu.npy", "b.imu.csv", "b.left.jpg", "d.imu.npy"):
        assert written[key] == dict(train)[key]
    assert json.loads(written["a.json"])["captions"] == ["picture a", "the same"]
    prepared = Index.open(str(out))
    assert prepared.inputs == {"image": "image", "imu": "series", "left": "image"}
    (record,) = ShardReader(prepared).read("train-000000.tar", [1], inputs=["imu", "left"])
    assert record.inputs == {"imu": b"t,x\n1,2\n", "left": photo(3)}
    stored = pq.read_table(out / "_prepare" / "lineage" / "train-000000.tar.parquet").to_pylist()
    assert [row["key"] for row in stored] == ["a", "b", "c", "d"]
