from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from pipelines.data.index.scan import ShardScan, scan_tar
from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.data.tars.sample import dump_texts, parse_texts
from pipelines.data.tars.shards import (
    ShardWriter,
    Split,
    assign_shard_splits,
    build_tar,
    make_sample_members,
    parse_split_name,
    shard_split,
    size_in_tar,
)
from pipelines.errors import DataError
from tests.pipelines.data.tar_maker import photo
from vlmodel.sample import Question, SampleTexts

TEXTS = SampleTexts(("Ein Fußgänger 🚶",), (Question("wo?", "links"),))


def _write(folder: Path, samples: int, **limits: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, "train", **limits) as writer:
        for number in range(samples):
            writer.add(f"sample-{number}", {"image": (b"image %d" % number, "jpg")}, TEXTS, {"number": number})
    return writer.shards


def test_shards_hold_what_was_added(tmp_path: Path) -> None:
    assert _write(tmp_path, 5, max_samples=2) == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"train-{n:06d}.tar" for n in range(3)]
    with tarfile.open(tmp_path / "train-000001.tar", "r:") as tar:
        assert tar.getnames() == ["sample-2.jpg", "sample-2.json", "sample-3.jpg", "sample-3.json"]
        image, texts = (tar.extractfile(name) for name in ("sample-3.jpg", "sample-3.json"))
        assert image is not None
        assert texts is not None
        assert image.read() == b"image 3"
        data = texts.read()
    assert data == dump_texts(TEXTS, {"number": 3})
    assert parse_texts(data, None) == TEXTS


def test_same_samples_give_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        _write(tmp_path / folder, 3)
    first, second = ((tmp_path / folder / "train-000000.tar").read_bytes() for folder in ("a", "b"))
    assert first == second
    # A golden value: another machine, year or user must not change it.
    assert hashlib.sha256(first).hexdigest() == "f08e88d824e15bf4800226259cc33046c8a6783444e0923332a2bc6e3844eefa"


def test_a_tar_in_memory_is_that_of_the_writer(tmp_path: Path) -> None:
    (name,) = _write(tmp_path, 3)
    samples = [
        make_sample_members(f"sample-{n}", {"image": (b"image %d" % n, ".JPG")}, TEXTS, {"number": n}) for n in range(3)
    ]
    assert build_tar(iter(samples)) == (tmp_path / name).read_bytes()
    assert [size_in_tar(members) for members in samples] == [2048] * 3


def test_size_limit_counts_headers_and_padding(tmp_path: Path) -> None:
    # Each sample takes 2 headers and 2 padded members of 512 bytes.
    assert len(_write(tmp_path / "a", 4, max_bytes=4096)) == 2
    assert len(_write(tmp_path / "b", 4, max_bytes=4095)) == 4
    assert len(_write(tmp_path / "c", 2, max_bytes=10)) == 2


def test_long_and_foreign_names(tmp_path: Path) -> None:
    keys = ["x" * 300, "écluse/駅 1", "emoji-🚲"]
    with ShardWriter(tmp_path, "test") as writer:
        for key in keys:
            writer.add(key, {"image": (b"i", ".JPEG")}, TEXTS)
    with tarfile.open(tmp_path / "test-000000.tar") as tar:
        assert tar.getnames() == [f"{key}.{end}" for key in keys for end in ("jpeg", "json")]


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a.b", "a\n", "a\0", "a\\b", "."])
def test_unfit_keys_are_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path, "train") as writer, pytest.raises(SampleError) as caught:
        writer.add(key, {"image": (b"i", "jpg")}, TEXTS)
    assert caught.value.reason is FaultReason.UNSAFE_MEMBER
    assert not list(tmp_path.iterdir())


def test_a_refused_sample_leaves_its_neighbours(tmp_path: Path) -> None:
    refused = [
        (("a", {"image": (b"i", "jpg")}, TEXTS), FaultReason.DUPLICATE_KEY),
        (("c", {"image": (b"", "jpg")}, TEXTS), FaultReason.EMPTY_MEMBER),
        (("c", {"image": (b"i", "psd")}, TEXTS), FaultReason.UNKNOWN_MEMBER),
        (("c", {"image": (b"i", "npy")}, TEXTS), FaultReason.UNKNOWN_MEMBER),
        (("c", {"image": (b"i", "jpg")}, SampleTexts((), ())), FaultReason.MISSING_TEXT),
        (("c", {"image": (b"i", "jpg")}, SampleTexts(("\ud800",), ())), FaultReason.BAD_UTF8),
    ]
    with ShardWriter(tmp_path, "train") as writer:
        writer.add("a", {"image": (b"i", "jpg")}, TEXTS)
        for arguments, reason in refused:
            with pytest.raises(SampleError) as caught:
                writer.add(*arguments)
            assert caught.value.reason == reason
        writer.add("b", {"image": (b"i", "jpg")}, TEXTS)
    assert (writer.samples, "a" in writer, "c" in writer) == (2, True, False)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getnames() == ["a.jpg", "a.json", "b.jpg", "b.json"]


def _scan(tar: Path, *inputs: str) -> ShardScan:
    with tar.open("rb") as file:
        return scan_tar(file.read, inputs=inputs)


def test_texts_alone(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", inputs=["text"]) as writer:
        writer.add("a", {}, TEXTS, {"number": 1})
        writer.add("b", {"image": (photo(1), "jpg")}, TEXTS)
        for texts, reason in (
            (SampleTexts(), FaultReason.MISSING_TEXT),
            (SampleTexts(("\ud800",)), FaultReason.BAD_UTF8),
        ):
            with pytest.raises(SampleError) as caught:
                writer.add("c", {}, texts)
            assert caught.value.reason == reason
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getnames() == ["a.json", "b.json"]
    data = (tmp_path / "train-000000.tar").read_bytes()
    assert dump_texts(TEXTS, {"number": 1}) in data
    assert data == build_tar(
        make_sample_members(key, {}, TEXTS, extra, ["text"]) for key, extra in (("a", {"number": 1}), ("b", None))
    )
    found = _scan(tmp_path / "train-000000.tar", "text")
    assert found.faults == []
    assert found.samples["key"].to_pylist() == ["a", "b"]
    assert found.samples["captions"].to_pylist() == found.samples["questions"].to_pylist() == [1, 1]


def test_images_alone(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", inputs=["image"]) as writer:
        writer.add("a", {"image": (photo(1), "jpg")}, SampleTexts())
        writer.add("b", {"image": (photo(2), ".JPEG")}, TEXTS, {"number": 2})
        refused = [
            ({}, "missing_image"),
            ({"image": (b"", "jpg")}, FaultReason.EMPTY_MEMBER),
            ({"image": (b"i", "")}, FaultReason.UNKNOWN_MEMBER),
        ]
        for inputs, reason in refused:
            with pytest.raises(SampleError) as caught:
                writer.add("c", inputs, TEXTS)
            assert caught.value.reason == reason
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getnames() == ["a.jpg", "b.jpeg"]
    found = _scan(tmp_path / "train-000000.tar", "image")
    assert found.faults == []
    assert found.samples["key"].to_pylist() == ["a", "b"]
    assert found.samples["image.sha256"].to_pylist() == [hashlib.sha256(photo(n)).hexdigest() for n in (1, 2)]


def test_pairs_need_both(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train") as writer:
        for inputs, texts, reason in (
            ({}, TEXTS, "missing_image"),
            ({"image": (b"i", "jpg")}, SampleTexts(), "missing_text"),
        ):
            with pytest.raises(SampleError) as caught:
                writer.add("a", inputs, texts)
            assert caught.value.reason == reason
    assert not list(tmp_path.iterdir())


def test_an_interrupted_shard_is_discarded(tmp_path: Path) -> None:
    def write_and_interrupt() -> None:
        with ShardWriter(tmp_path, "train", max_samples=1) as writer:
            writer.add("a", {"image": (b"i", "jpg")}, TEXTS)
            writer.add("b", {"image": (b"i", "jpg")}, TEXTS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_interrupt()
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.tar"]


def test_no_samples_no_shard(tmp_path: Path) -> None:
    assert _write(tmp_path, 0) == []
    assert not list(tmp_path.iterdir())


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'dev' is not one of train, val, test"):
        ShardWriter(tmp_path, "dev")


def test_split_names() -> None:
    named = {name: parse_split_name(name) for name in ("train", "VAL", "validation", "valid", " dev ", "test", "extra")}
    assert list(named.values()) == ["train", "val", "val", "val", "val", "test", None]


@pytest.mark.parametrize(
    ("split", "names"),
    {
        "train": "train-000001 train TRAIN_0 train2017 cc3m-train-0 00001 monday trainval2012 training.0 mine_train",
        "val": "dev-0 val coco-val-000 cc-validation-0000 val2017 Valid_3 cocoVal2014 minival a.val.0 VALIDATION dev",
        "test": "test-000001 test_0 mine_test-0 test2015 test-dev2015 eval-0 evaluation-of-trainers val-test-0 TestSet",
        # Only whole words count.
        "train ": "contest-000 latest-0 valley-000 devices-0 evaluator-1 interval_7 trainers attested protest2017",
    }.items(),
)
def test_a_split_is_a_word_of_a_tars_name(split: str, names: str) -> None:
    assert {name: shard_split(f"{name}.tar") for name in names.split()} == dict.fromkeys(names.split(), split.strip())


@pytest.mark.parametrize("name", ["train-val-000", "test_train_0", "train2017-eval"])
def test_a_name_that_contradicts_itself_is_refused(name: str) -> None:
    with pytest.raises(
        DataError, match=f"'{name}.tar' says train, and (val|test) too; rename the tar, or set its split in"
    ):
        shard_split(f"{name}.tar")
    assert shard_split(f"{name}.tar", {"val": [name]}) == "val"


def test_patterns_come_before_names() -> None:
    patterns: dict[Split, list[str]] = {"val": ["held-*", "val-1*.tar"], "train": ["val-0*"]}
    names = {"held-out-3.tar": "val", "val-000.tar": "train", "val-100.tar": "val", "test-1.tar": "test"}
    assert assign_shard_splits(names, patterns) == names
    with pytest.raises(DataError, match=r"'val-1\.tar' matches data\.index\.splits\.val and \.test"):
        shard_split("val-1.tar", {"val": ["val-*"], "test": ["*-1"]})


def test_tars_that_say_no_split_beside_others() -> None:
    names = {"shard-000.tar": "train", "shard-001.tar": "train", "val.tar": "val", "test.tar": "test"}
    assert assign_shard_splits(names) == names
    more = [*names, "train-000.tar"]
    with pytest.raises(DataError, match=r"1 tars say train \('train-000\.tar', .*2 say no split \('shard-000\.tar'"):
        assign_shard_splits(more)
    assert assign_shard_splits(more, {"train": ["shard-*"]}) == names | {"train-000.tar": "train"}
    with pytest.raises(DataError, match=r"'cocotrain2017\.tar' and 'cocoval2017\.tar' seem to be of two splits"):
        assign_shard_splits(["cocotrain2017.tar", "cocoval2017.tar"])


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_our_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_SECURE", "1")
    import webdataset

    _write(tmp_path, 3)
    samples = list(webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"sample-{number}" for number in range(3)]
    assert [sample["jpg"] for sample in samples] == [b"image %d" % number for number in range(3)]
    assert all(parse_texts(sample["json"], None) == TEXTS for sample in samples)
