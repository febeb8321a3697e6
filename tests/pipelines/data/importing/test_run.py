from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import stat
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.data.importers import easy_vqa, folder, scenes, table
from pipelines.data.importing.importer import Importer, RejectedSample, SourceContents, SourceSample
from pipelines.data.importing.run import MANIFEST, REJECTS, SplitCounts, import_data
from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.sample_check import hash_key
from pipelines.data.tars.errors import FaultReason
from pipelines.data.tars.reader import ShardReader
from pipelines.data.tars.sample import GROUP, parse_texts
from pipelines.data.tars.shards import ShardWriter, shard_split
from pipelines.errors import DataError
from tests.pipelines.data.tar_maker import photo
from vlmodel.config import dump_config, find_part_config_class, list_part_kinds, parse_config
from vlmodel.sample import Question, SampleTexts

SMALL = scenes.Config(train=5, val=2, test=1, image_size=32, samples_per_shard=2)


class Listed(Importer):
    """A source of records that a test lists."""

    kind: str = "listed"
    entries: tuple[SourceSample | RejectedSample, ...] = ()

    def fingerprint(self) -> str:
        return "listed"

    def read(self) -> SourceContents:
        splits = {entry.split for entry in self.entries if isinstance(entry, SourceSample)}
        return SourceContents(len(self.entries), iter(self.entries), splits=splits)


def _record(split: str, key: str, image: bytes = b"i", extension: str = "png", caption: str = "c") -> SourceSample:
    return SourceSample(split, key, {"image": (image, extension)}, SampleTexts((caption,), ()))


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _members(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield shard_split(path.name), member.name, file.read()


def test_every_kind_is_an_importer() -> None:
    assert list_part_kinds("pipelines.data.importers") == [
        "coco",
        "conversations",
        "easy_vqa",
        "facts",
        "feedback",
        "files",
        "flickr",
        "folder",
        "hf_dataset",
        "scenes",
        "table",
        "uea",
    ]
    for kind in list_part_kinds("pipelines.data.importers"):
        config = find_part_config_class("pipelines.data.importers", kind)
        assert issubclass(config, Importer)
        assert config.model_fields["kind"].default == kind
        assert all(
            field.description
            for name, field in config.model_fields.items()
            if name not in ("kind", "train", "val", "test")
        )


def test_an_import_is_complete_and_reproducible(tmp_path: Path) -> None:
    summary = import_data(SMALL, tmp_path / "a", progress=False)
    assert list(summary.shards) == [
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
        "val-000000.tar",
        "test-000000.tar",
    ]
    samples = [(split, name) for split, name, _ in _members(tmp_path / "a") if name.endswith(".png")]
    assert samples == [("test", "test-000000.png"), *(("train", f"train-{n:06d}.png") for n in range(5))] + [
        ("val", f"val-{n:06d}.png") for n in range(2)
    ]
    questions = sum(
        len(parse_texts(data, None).questions)
        for split, name, data in _members(tmp_path / "a")
        if split == "train" and name.endswith(".json")
    )
    assert summary.splits["train"] == SplitCounts(5, summary.splits["train"].captions, questions)
    assert summary.rejected == {}
    assert not summary.unchanged
    import_data(SMALL, tmp_path / "b", progress=False)
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def _table(path: Path, *rows: str) -> str:
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def test_texts_alone_are_imported_indexed_and_read(tmp_path: Path, ray_local: None) -> None:
    rows = ["question,answer,split,key", "what is grass?,green,train,", "what is sky?,blue,train,sky", ",,train,none"]
    config = table.Config(file=_table(tmp_path / "said.csv", *rows, "is it?,yes,val,"), inputs="text")
    summary = import_data(config, tmp_path / "out", progress=False)
    assert summary.splits == {"train": SplitCounts(2, 0, 2), "val": SplitCounts(1, 0, 1)}
    assert summary.rejected == {"missing_text": 1}
    assert [name for _, name, _ in _members(tmp_path / "out")] == [
        "said-00000002.json",
        "sky.json",
        "said-00000005.json",
    ]
    assert import_data(config, tmp_path / "out", progress=False) == replace(summary, unchanged=True)

    index = build_index(str(tmp_path / "out"), IndexConfig(inputs=("text",)))
    assert index.counts() == {"train": 2, "val": 1, "test": 0}
    assert index.quarantine().num_rows == 0
    records = ShardReader(index).read("train-000000.tar", [1, 0])
    assert [(record.key, set(record.present), record.texts) for record in records] == [
        ("sky", {"questions"}, SampleTexts((), (Question("what is sky?", "blue"),))),
        ("said-00000002", {"questions"}, SampleTexts((), (Question("what is grass?", "green"),))),
    ]


def test_images_alone_are_imported_indexed_and_read(tmp_path: Path, ray_local: None) -> None:
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(photo(number))
    config = table.Config(
        file=_table(tmp_path / "t.csv", "image,caption", "0.jpg,a", "1.jpg,", "0.jpg,b"), inputs="image"
    )
    summary = import_data(config, tmp_path / "out", progress=False)
    assert summary.splits == {"train": SplitCounts(2, 0, 0)}
    assert [name for _, name, _ in _members(tmp_path / "out")] == ["0.jpg", "1.jpg"]
    index = build_index(str(tmp_path / "out"), IndexConfig(inputs=("image",), validation_fraction=0.0))
    records = ShardReader(index).read("train-000000.tar", [0, 1])
    assert [(record.key, record.inputs["image"], record.texts) for record in records] == [
        ("0", photo(0), SampleTexts()),
        ("1", photo(1), SampleTexts()),
    ]


def test_what_is_not_asked_for_is_neither_written_nor_counted(tmp_path: Path) -> None:
    entries = (_record("train", "a"), _record("train", "b", caption="\udce9"), _record("train", "c", b""))
    said = import_data(Listed(entries=entries, inputs="text"), tmp_path / "texts", progress=False)
    assert (said.splits, said.rejected) == ({"train": SplitCounts(2, 2, 0)}, {"bad_utf8": 1})
    seen = import_data(Listed(entries=entries, inputs="image"), tmp_path / "images", progress=False)
    assert (seen.splits, seen.rejected) == ({"train": SplitCounts(2, 0, 0)}, {"empty_member": 1})
    names = {folder: [name for _, name, _ in _members(tmp_path / folder)] for folder in ("texts", "images")}
    assert names == {"texts": ["a.json", "c.json"], "images": ["a.png", "b.png"]}


def test_what_samples_are_made_of_is_part_of_what_an_import_is(tmp_path: Path) -> None:
    config = Listed(entries=(_record("train", "a"),))
    import_data(config, tmp_path / "out", progress=False)
    with pytest.raises(
        DataError, match=r"another import \(source\.inputs is \['image', 'text'\] there and \['text'\] here\)"
    ):
        import_data(config.model_copy(update={"inputs": ("text",)}), tmp_path / "out", progress=False)
    manifest = tmp_path / "out" / MANIFEST
    tree = json.loads(manifest.read_text())
    del tree["config"]["inputs"]  # As imports wrote it that knew pairs only.
    del tree["passed_over"], tree["splits"]["train"]["unanswered"]
    manifest.write_text(json.dumps(tree))
    assert import_data(config, tmp_path / "out", progress=False).unchanged
    with pytest.raises(
        DataError, match=r"another import \(source\.inputs is \['image', 'text'\] there and \['text'\] here\)"
    ):
        import_data(config.model_copy(update={"inputs": ("text",)}), tmp_path / "out", progress=False)


def test_what_the_jobs_write_below_a_source_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(photo(0))
    runs, out = tmp_path / "build" / "runs", tmp_path / "build" / "tars"
    config = folder.Config(folder=str(tmp_path))
    first = import_data(config, out, progress=False, left_out=[runs])
    assert (first.splits["train"].samples, first.passed_over) == (1, {})
    runs.mkdir()
    (runs / "curves.png").write_bytes(photo(1))
    assert import_data(config, out, progress=False, left_out=[runs]).unchanged
    with pytest.raises(DataError, match="the source's files have changed since"):
        import_data(config, out, progress=False)


def test_another_kind_of_import_is_told_by_its_kind(tmp_path: Path) -> None:
    import_data(Listed(entries=(_record("train", "a"),)), tmp_path / "out", progress=False)
    (tmp_path / "0.jpg").write_bytes(photo(0))
    config = table.Config(file=_table(tmp_path / "t.jsonl", '{"image": "0.jpg", "caption": "c"}'))
    with pytest.raises(DataError, match=r"another import \(source\.kind is 'listed' there and 'table' here\)"):
        import_data(config, tmp_path / "out", progress=False)


def test_images_that_lie_elsewhere_are_told_once_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,caption\n0.jpg,a\n1.jpg,b\n")
    with pytest.raises(DataError) as caught:
        import_data(table.Config(file=str(tmp_path / "t.csv")), tmp_path / "out", progress=False)
    assert str(caught.value).count("missing_image") == 1
    assert "set source.images to the folder that holds them" in str(caught.value)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "add", add)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: {str(tmp_path)!r}")):
        import_data(Listed(entries=(_record("train", "a"),)), tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("row", "remedy"), [('{"caption": "c"}', "text"), ('{"image": "0.jpg"}', "image")])
def test_a_source_of_one_kind_alone_is_told_how_to_say_so(tmp_path: Path, row: str, remedy: str) -> None:
    (tmp_path / "0.jpg").write_bytes(photo(0))
    config = table.Config(file=_table(tmp_path / "t.jsonl", row))
    with pytest.raises(DataError, match=rf"gave no usable sample .* by source\.inputs=\[\"{remedy}\"\]"):
        import_data(config, tmp_path / "out", progress=False)
    other = config.model_copy(update={"inputs": (remedy,)})
    assert import_data(other, tmp_path / "out", progress=False).splits["train"].samples == 1


def test_images_keep_their_bytes(tmp_path: Path, shared_data) -> None:
    root = shared_data("easy-vqa")
    (tmp_path / "part" / "data" / "test").mkdir(parents=True)
    rows = [row for row in json.loads((root / "data/test/questions.json").read_text()) if row[2] < 50]
    (tmp_path / "part" / "data" / "test" / "questions.json").write_text(json.dumps(rows))
    (tmp_path / "part" / "test_images.tar").symlink_to(root / "test_images.tar")
    summary = import_data(easy_vqa.Config(folder=str(tmp_path / "part")), tmp_path / "out", progress=False)
    assert summary.splits == {"test": SplitCounts(50, 0, len(rows))}
    with tarfile.open(root / "test_images.tar") as tar:
        originals = {}
        for number in range(50):
            file = tar.extractfile(f"data/test/images/{number}.png")
            assert file is not None
            originals[f"test-{number}.png"] = file.read()
    assert {name: data for _, name, data in _members(tmp_path / "out") if name.endswith(".png")} == originals


def test_the_same_import_again_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = import_data(SMALL, tmp_path / "out", progress=False)
    (tmp_path / "out" / "_index").mkdir()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(scenes.Config, "read", lambda self: pytest.fail("read the source again"))
    again = import_data(parse_config(scenes.Config, dump_config(SMALL)), tmp_path / "out", progress=False)
    assert again.unchanged
    assert (again.splits, again.shards) == (first.splits, first.shards)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_another_import_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_data(SMALL, out, progress=False)
    with pytest.raises(
        DataError, match=r"another import \(source\.seed is 0 there and 1 here\); choose another folder"
    ):
        import_data(SMALL.model_copy(update={"seed": 1}), out, progress=False)
    (out / "val-000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"val-000000\.tar is missing or was changed"):
        import_data(SMALL, out, progress=False)
    (out / MANIFEST).write_text("[]")
    with pytest.raises(DataError, match="cannot be read"):
        import_data(SMALL, out, progress=False)
    (out / MANIFEST).unlink()
    with pytest.raises(DataError, match="not empty and holds no import"):
        import_data(SMALL, out, progress=False)
    with pytest.raises(DataError, match="is a file"):
        import_data(SMALL, out / "train-000000.tar", progress=False)


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(photo(0))
    (tmp_path / "t.csv").write_text("image,caption\n0.png,c\n1.png,d\n")
    config = table.Config(file=str(tmp_path / "t.csv"))
    # The tars lie inside the source's folder, which must not look like a change.
    assert import_data(config, tmp_path / "out", progress=False).rejected == {"missing_image": 1}
    assert import_data(config, tmp_path / "out", progress=False).unchanged
    (tmp_path / "1.png").write_bytes(photo(1))
    with pytest.raises(DataError, match="the source's files have changed since"):
        import_data(config, tmp_path / "out", progress=False)


def test_an_empty_folder_may_exist_or_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    import_data(SMALL, tmp_path / "link", progress=False)
    assert (tmp_path / "real" / MANIFEST).is_file()
    assert (tmp_path / "link").is_symlink()


def test_bad_records_are_listed_and_neighbours_survive(tmp_path: Path) -> None:
    entries = (
        RejectedSample("line 3", FaultReason.BAD_JSON, "caf\udce9"),
        _record("train", "a"),
        _record("train", "a", b"another"),
        _record("test", "a"),
        _record("train", "b.c"),
        _record("train", "d", b""),
        _record("train", "e", extension="psd"),
        _record("train", "f", caption="\udce9"),
        _record("test", "ö", caption="日本語"),
    )
    summary = import_data(Listed(entries=entries), tmp_path / "out", progress=False)
    assert [(split, name) for split, name, _ in _members(tmp_path / "out")] == [
        ("test", "ö.png"),
        ("test", "ö.json"),
        ("train", "a.png"),
        ("train", "a.json"),
    ]
    rejects = [json.loads(line) for line in (tmp_path / "out" / REJECTS).read_text().splitlines()]
    assert [(reject["key"], reject["reason"]) for reject in rejects] == [
        ("line 3", "bad_json"),
        ("a", "duplicate_key"),
        ("a", "duplicate_key"),
        ("b.c", "unsafe_member"),
        ("d", "empty_member"),
        ("e", "unknown_member"),
        ("f", "bad_utf8"),
    ]
    assert "split 'train' already has this key" in rejects[2]["detail"]
    assert summary.rejected == {
        "bad_json": 1,
        "bad_utf8": 1,
        "duplicate_key": 2,
        "empty_member": 1,
        "unknown_member": 1,
        "unsafe_member": 1,
    }
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["rejected"] == summary.rejected
    counts = {
        "samples": 1,
        "captions": 1,
        "questions": 0,
        "conversations": 0,
        "unanswered": 0,
        "classes": 0,
        "inputs": {},
    }
    assert manifest["splits"]["test"] == counts


def test_what_a_source_holds_besides_is_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "._a.jpg", "a.txt", "b.txt"):
        (tmp_path / "in" / name).write_bytes(photo(0))
    config = folder.Config(folder=str(tmp_path / "in"))
    summary = import_data(config, tmp_path / "out", progress=False)
    assert summary.passed_over == {".txt files": 2, "hidden files and folders": 1}
    assert import_data(config, tmp_path / "out", progress=False).passed_over == summary.passed_over
    (tmp_path / "in" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"no usable sample \(it holds 2 \.txt files, 1 hidden files and folders\)"):
        import_data(config, tmp_path / "none", progress=False)


def test_one_image_file_is_one_sample_of_one_split(tmp_path: Path) -> None:
    first, again, other = _record("train", "a"), _record("val", "b"), _record("val", "c")
    entries = (first._replace(file="1"), again._replace(file="1"), other._replace(file="2"), _record("val", "d"))
    summary = import_data(Listed(entries=entries), tmp_path / "out", progress=False)
    assert {split: counts.samples for split, counts in summary.splits.items()} == {"train": 1, "val": 2}
    assert summary.rejected == {"duplicate_key": 1}


def test_a_file_of_a_record_that_was_refused_is_free(tmp_path: Path) -> None:
    empty = _record("train", "a", b"")._replace(file="1")
    entries = (empty, _record("train", "b")._replace(file="1"))
    assert import_data(Listed(entries=entries), tmp_path / "out", progress=False).splits["train"].samples == 1


def test_questions_without_an_answer_are_counted(tmp_path: Path) -> None:
    questions = (Question("p?"), Question("q?", "yes"), Question("r?"))
    record = _record("train", "a")._replace(texts=SampleTexts((), questions))
    summary = import_data(Listed(entries=(record,)), tmp_path / "out", progress=False)
    assert summary.splits["train"] == SplitCounts(samples=1, questions=3, unanswered=2)


def test_a_new_folder_is_its_owners_alone(tmp_path: Path) -> None:
    import_data(SMALL, tmp_path / "new", progress=False)
    (tmp_path / "shared").mkdir(mode=0o755)
    (tmp_path / "shared").chmod(0o2755)
    import_data(SMALL, tmp_path / "shared", progress=False)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "shared")]
    assert modes == [0o700, 0o2755]


def _split_of_keys(folder: Path) -> dict[str, str]:
    return {name.rpartition(".")[0]: split for split, name, _ in _members(folder)}


@pytest.mark.parametrize("inputs", [["image", "text"], ["image"]], ids=["pairs", "images"])
def test_splits_are_cut_by_the_hash_of_the_group(tmp_path: Path, inputs: list[str]) -> None:
    entries = tuple(
        _record("train", f"k{number}")._replace(extra={GROUP: f"scene {number % 40}"}) for number in range(400)
    )
    config = Listed(entries=entries, inputs=inputs, test_fraction=0.3)
    summary = import_data(config, tmp_path / "out", progress=False)
    splits = _split_of_keys(tmp_path / "out")
    of_scene = {number: {splits[f"k{n}"] for n in range(number, 400, 40)} for number in range(40)}
    assert all(len(of_one) == 1 for of_one in of_scene.values())
    assert [name for name, count in summary.splits.items() if count] == ["train", "test"]


def test_without_groups_splits_are_cut_by_the_key(tmp_path: Path) -> None:
    entries = tuple(_record("train", f"k{number}") for number in range(1000))
    config = Listed(entries=entries, test_fraction=0.1)
    import_data(config, tmp_path / "a", progress=False)
    import_data(config.model_copy(update={"entries": entries[::-1]}), tmp_path / "b", progress=False)
    splits = _split_of_keys(tmp_path / "a")
    assert splits == _split_of_keys(tmp_path / "b")
    tested = [key for key, split in splits.items() if split == "test"]
    assert 60 < len(tested) < 140
    assert "val" not in splits.values()
    # The index cuts off its share of what is left, as of any train samples.
    left = [hash_key(key) < 2**64 // 10 for key, split in splits.items() if split == "train"]
    assert 60 < sum(left) < 120


def test_a_source_with_a_split_test_is_not_cut(tmp_path: Path) -> None:
    entries = (*(_record("train", f"k{number}") for number in range(20)), _record("test", "b"))
    summary = import_data(Listed(entries=entries, test_fraction=0.5), tmp_path / "out", progress=False)
    splits = _split_of_keys(tmp_path / "out")
    assert [key for key, split in splits.items() if split == "test"] == ["b"]
    assert summary.test_fraction == 0


def test_a_share_that_became_test_is_stored_with_the_import(tmp_path: Path) -> None:
    config = Listed(entries=tuple(_record("train", f"k{number}") for number in range(100)))
    for unchanged in (False, True):
        summary = import_data(config, tmp_path / "out", progress=False)
        assert (summary.test_fraction, summary.unchanged) == (0.1, unchanged)


class _Silent(Listed):
    """Does not say which splits it has."""

    def read(self) -> SourceContents:
        return SourceContents(len(self.entries), iter(self.entries))


def test_a_split_test_that_the_importer_does_not_name_is_refused(tmp_path: Path) -> None:
    entries = (_record("train", "a"), _record("test", "b"))
    with pytest.raises(DataError, match=r"its own \(sample 'b'\), .* set source\.test_fraction=0"):
        import_data(_Silent(entries=entries), tmp_path / "none", progress=False)
    import_data(_Silent(entries=entries, test_fraction=0), tmp_path / "out", progress=False)
    assert _split_of_keys(tmp_path / "out") == {"a": "train", "b": "test"}


def test_no_usable_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"gave no usable sample \(a: empty_member, the image of key 'a' has no bytes\)"
    ):
        import_data(Listed(entries=(_record("train", "a", b""),)), tmp_path / "out", progress=False)
    with pytest.raises(DataError, match="gave no usable sample; correct it"):
        import_data(Listed(), tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []


class _Crash(Listed):
    def read(self) -> SourceContents:
        def records() -> Iterator[SourceSample | RejectedSample]:
            yield from self.entries
            os._exit(9)

        return SourceContents(9, records())


def test_a_crash_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    out = tmp_path / "out"
    entries = tuple(_record("train", f"k{number}") for number in range(5))
    child = os.fork()
    if child == 0:
        with suppress(BaseException):  # the process is pytest's: it must end here
            import_data(_Crash(entries=entries, samples_per_shard=2), out, progress=False)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not out.exists()
    leftover = tmp_path / ".out.importing"
    assert (leftover / "train-000001.tar").exists()
    (leftover / "strange").mkdir()
    import_data(Listed(entries=entries[:3]), out, progress=False)
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, REJECTS, "train-000000.tar"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_link_where_an_import_is_staged_leads_to_nothing_that_is_deleted(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("years of work")
    (tmp_path / ".out.importing").symlink_to(elsewhere)
    with pytest.raises(DataError, match="cannot be written"):
        import_data(SMALL, tmp_path / "out", progress=False)
    assert (elsewhere / "thesis.txt").read_text() == "years of work"
    (tmp_path / ".out.importing").unlink()
    (tmp_path / ".out.importing").mkdir()
    (tmp_path / ".out.importing" / "left").symlink_to(elsewhere)
    import_data(SMALL, tmp_path / "out", progress=False)
    assert (elsewhere / "thesis.txt").read_text() == "years of work"


def test_two_imports_into_one_folder(tmp_path: Path) -> None:
    staging = tmp_path / ".out.importing"
    staging.mkdir()
    (staging / "train-000000.tar").write_bytes(b"of the other process")
    other = os.open(staging, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(DataError, match=r"another process is importing into .*out; wait"):
        import_data(SMALL, tmp_path / "out", progress=False)
    assert (staging / "train-000000.tar").read_bytes() == b"of the other process"
    os.close(other)
    import_data(SMALL, tmp_path / "out", progress=False)


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        import_data(SMALL, tmp_path / "file" / "out", progress=False)
    with pytest.raises(DataError, match="s3://bucket/tars is a URI, and an import writes to a local folder"):
        import_data(SMALL, "s3://bucket/tars", progress=False)


def test_progress_on_a_terminal_and_in_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", terminal.__bool__)
        monkeypatch.setattr(sys, "stderr", stream)
        import_data(SMALL, tmp_path / str(terminal))
        shown = stream.getvalue()
        assert "import scenes" in shown
        assert "8/8" in shown
        assert ("\r" in shown) is terminal
