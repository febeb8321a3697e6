"""Samples of images, series and texts, any of which may be missing: rows, faults, counts, reading, and what is said."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.files import total_sample_count
from pipelines.data.index.index import Index
from pipelines.data.index.present import join_input_names, mask_of_usable_samples, split_input_names
from pipelines.data.index.scan import ShardScan, scan_tar
from pipelines.data.tars.errors import FaultReason
from pipelines.data.tars.inputs import input_of_extension, member_extension
from pipelines.data.tars.reader import ShardReader
from pipelines.errors import DataError
from tests.pipelines.data.tar_maker import Entry, build_tar, header_of, photo, series, texts, write_tar, zeroed
from vlmodel import media
from vlmodel.config import ConfigError, parse_config
from vlmodel.media import registry

ALL = ["image?", "imu?", "text?"]
ALONE = IndexConfig(inputs=ALL, validation_fraction=0.0, max_quarantine_fraction=1.0)


def scan(entries: list[Entry], inputs: list[str] = ALL, **settings) -> ShardScan:
    return scan_tar(io.BytesIO(build_tar(entries)).read, inputs=inputs, **settings)


def sample(number: int, *kinds: str) -> list[Entry]:
    """A sample with some of image, imu and text."""
    members = {
        "image": (f"{number}.jpg", photo(number)),
        "imu": (f"{number}.imu.npy", series(number)),
        "text": (f"{number}.json", texts(number)),
    }
    return [members[kind] for kind in kinds]


def test_each_input_may_be_missing():
    kinds = [("image", "imu", "text"), ("imu",), ("image",), ("text",), ("imu", "text"), ("image", "imu")]
    entries = [entry for number, of in enumerate(kinds) for entry in sample(number, *of)]
    found = scan(entries)
    assert (found.faults, found.passed_over) == ([], {})
    assert found.inputs == {"image": "image", "imu": "series"}
    rows, data = found.samples.to_pylist(), build_tar(entries)
    assert [split_input_names(row["present"]) - {"captions", "questions"} for row in rows] == [
        set(of) - {"text"} for of in kinds
    ]
    for number, (row, of) in enumerate(zip(rows, kinds, strict=True)):
        for name, bytes_ in (("image", photo(number)), ("imu", series(number))):
            place = row[f"{name}.offset"], row[f"{name}.size"], row[f"{name}.sha256"]
            if name in of:
                assert data[place[0] : place[0] + place[1]] == bytes_
                assert place[2] == hashlib.sha256(bytes_).hexdigest()
            else:
                assert place == (None, None, None)
        assert (row["captions"], row["questions"]) == ((1, 1) if "text" in of else (0, 0))
    assert (rows[1]["imu.format"], rows[1]["imu.length"], rows[1]["imu.channels"]) == ("npy", 20, 3)
    assert (rows[1]["imu.extension"], rows[0]["image.extension"]) == ("npy", "jpg")


def test_a_member_without_a_name_is_the_input_of_its_medium():
    entries = [("1.csv", b"t,x\n0,1.5\n1,2.5\n"), ("2.npy", series(2)), ("3.left.png", photo(3, form="PNG"))]
    found = scan(entries, ["left?", "series?"])
    assert found.faults == []
    assert found.inputs == {"left": "image", "series": "series"}
    assert found.samples["series.format"].to_pylist() == ["csv", "npy", None]
    assert found.samples["left.width"].to_pylist() == [None, None, 48]
    for extension, name in (("jpg", "image"), ("npy", "series"), ("imu.csv", "imu"), ("json", "text")):
        assert input_of_extension(extension).name == name
    for extension in ("md5", "imu.md5", "1.npy", "image.npy", "captions.npy", "a.b.npy", "captions.json"):
        assert input_of_extension(extension) is None
    assert [member_extension("series", "csv"), member_extension("imu", "csv")] == ["csv", "imu.csv"]


def npy_of_pickle() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], object), allow_pickle=True)
    return out.getvalue()


def npy_of(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


NAN = npy_of(np.array([[0, 1], [np.nan, 2]], np.float32))
FAULTS: dict[str, tuple[str, list[Entry]]] = {
    "NaN": ("not_finite_series", [("5.imu.npy", NAN)]),
    "infinity in a csv": ("not_finite_series", [("5.imu.csv", b"1,2\n3,inf\n")]),
    "objects": ("undecodable_series", [("5.imu.npy", npy_of_pickle())]),
    "a pickle by its bytes": ("undecodable_series", [("5.imu.npy", pickle.dumps([1, 2, 3]))]),
    "a pickle by its name": (FaultReason.UNSAFE_MEMBER, [("5.imu.pkl", pickle.dumps([1, 2, 3]))]),
    "truncated": ("truncated_series", [("5.imu.npy", series(5)[:-9])]),
    "cut in its header": ("undecodable_series", [("5.imu.npy", series(5)[:30])]),
    "strings": ("undecodable_series", [("5.imu.npy", npy_of(np.array(["a", "b"])))]),
    "complex numbers": ("undecodable_series", [("5.imu.npy", npy_of(np.ones((4, 2), np.complex64)))]),
    "three dimensions": ("wrong_shape_series", [("5.imu.npy", npy_of(np.ones((2, 2, 2))))]),
    "no numbers": ("empty_series", [("5.imu.npy", npy_of(np.ones((0, 3))))]),
    "a ragged line": ("wrong_shape_series", [("5.imu.csv", b"a,b\n1,2\n3\n")]),
    "words": ("wrong_column_series", [("5.imu.csv", b"a,b\n1,2\n3,four\n")]),
    "too many numbers": ("too_large_series", [("5.imu.npy", npy_of(np.zeros((2001, 1), np.int8)))]),
    "too many bytes": ("too_large_series", [("5.imu.npy", npy_of(np.zeros((2000, 9))))]),
    "no bytes": (FaultReason.EMPTY_MEMBER, [("5.imu.npy", b"")]),
    "two members of one input": (FaultReason.DUPLICATE_KEY, [("5.imu.npy", series(5)), ("5.imu.csv", b"1,2\n")]),
    "its image is cut": ("truncated_image", [("5.imu.npy", series(5)), ("5.jpg", photo(5)[:200])]),
    "another medium": (FaultReason.WRONG_MEDIUM, [("5.imu.jpg", photo(5))]),
    "none of the inputs": (FaultReason.UNKNOWN_MEMBER, [("5.gyro.npy", series(5))]),
    "a text without texts": (FaultReason.NO_INPUT, [("5.json", b'{"url": "x"}')]),
    "no input that is read": (FaultReason.NO_INPUT, [("5.npy", series(5))]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_row_and_neighbours_are_delivered(name):
    reason, entries = FAULTS[name]
    found = scan([*sample(1, "image", "imu", "text"), *entries, *sample(9, "imu")], max_bytes=1 << 16, max_values=2000)
    assert [(fault.reason, fault.key) for fault in found.faults] == [(reason, "5")], found.faults
    assert found.faults[0].detail
    assert found.samples["key"].to_pylist() == ["1", "9"]


def test_what_is_said_of_a_fault_has_the_limit_or_the_remedy():
    found = scan([("1.npy", npy_of(np.zeros((9, 1))))], ["series"], max_values=8)
    assert "max_values allows 8; raise that limit of data.index" in found.faults[0].detail
    found = scan([("1.npy", series(1))], ["series"], max_bytes=8)
    assert "data.index.max_bytes allows 8" in found.faults[0].detail
    found = scan(sample(1, "image", "text"), ["image", "imu", "text"])
    (fault,) = found.faults
    assert (fault.reason, fault.member) == ("missing_imu", "1.jpg")
    assert "there is only .jpg, .json; the input 'imu' ends in .imu.wav" in fault.detail
    assert ".imu.npy" in fault.detail
    found = scan(sample(1, "imu"), ["image", "text"])
    assert found.faults[0].reason is FaultReason.UNKNOWN_MEMBER
    assert "the input 'imu', which is not read (data.index.inputs)" in found.faults[0].detail


def test_a_break_of_the_tar_costs_what_is_beside_it():
    entries = [entry for number in (1, 2, 3) for entry in sample(number, "image", "imu", "text")]
    data = build_tar(entries)
    spoiled = zeroed(data, header_of(data, "2.imu.npy"))
    found = scan_tar(io.BytesIO(spoiled).read, inputs=ALL)
    assert [fault.reason for fault in found.faults] == [FaultReason.BROKEN_TAR]
    assert found.samples["key"].to_pylist() == ["1", "3"]


def test_what_is_present_is_joined_and_split():
    assert join_input_names({"imu", "captions", "image"}) == "captions,image,imu"
    assert split_input_names("captions,image,imu") == {"imu", "captions", "image"}


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([], "name at least one input"),
        (["image", "image?"], "'image' is named twice"),
        (["Imu"], "'Imu' is no name of an input"),
        (["captions"], "'captions' is no name of an input"),
        (["a.b"], "'a.b' is no name of an input"),
    ],
)
def test_names_of_inputs_are_checked(inputs, says):
    with pytest.raises(ConfigError, match=says):
        parse_config(IndexConfig, {"inputs": inputs})


def test_names_of_inputs_have_one_order():
    assert IndexConfig(inputs=["text", "imu?", "image"]).inputs == ("image", "imu?", "text")
    assert IndexConfig(inputs="text, imu?").inputs == ("imu?", "text")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's workers take seconds to start."""
    monkeypatch.setattr("pipelines.data.index.build.map_shards", lambda items, work: map(work, items))


@pytest.mark.usefixtures("in_this_process")
class TestIndexed:
    def index(self, folder: Path, config: IndexConfig = ALONE) -> Index:
        write_tar(folder, "a.tar", [*sample(1, "image", "imu", "text"), *sample(2, "imu"), *sample(3, "image", "text")])
        write_tar(folder, "b.tar", [*sample(4, "text"), *sample(5, "image", "text")])
        return build_index(str(folder), config)

    def test_counts_by_what_is_present(self, tmp_path):
        index = self.index(tmp_path)
        assert index.inputs == {"image": "image", "imu": "series"}
        assert index.input_requirements == {"image": False, "imu": False, "text": False}
        assert index.count(lambda present: True) == 5
        assert index.count(lambda present: "imu" in present) == 2
        assert index.count(lambda present: {"imu", "image", "questions"} <= present) == 1
        assert index.count(lambda present: "image" not in present, "train") == 2
        assert index.count(lambda present: True, "val") == 0
        first, second = index.shards
        assert (first.count(lambda present: "imu" in present), second.count(lambda present: "imu" in present)) == (2, 0)
        assert second.present == {
            "train": {frozenset({"captions", "questions"}): 1, frozenset({"captions", "questions", "image"}): 1}
        }
        report = index.report().splitlines()
        assert "input image (image): 3 samples" in report
        assert "input imu (series): 2 samples" in report

    def test_counts_by_split(self, tmp_path):
        index = self.index(tmp_path, ALONE.model_copy(update={"validation_fraction": 0.5}))
        rows = [row for shard in index.shards for row in index.rows(shard.name).to_pylist()]
        assert {row["split"] for row in rows} == {"train", "val"}
        for split in ("train", "val"):
            expected = sum(row["split"] == split and row["imu.size"] is not None for row in rows)
            assert index.count(lambda present: "imu" in present, split) == expected

    def test_all_shards_have_the_same_columns(self, tmp_path):
        index = self.index(tmp_path)
        first, second = (index.rows(shard.name) for shard in index.shards)
        assert first.schema.equals(second.schema)
        assert second["imu.length"].null_count == second.num_rows == 2
        assert mask_of_usable_samples(first, lambda present: "imu" in present).tolist() == [True, True, False]
        assert mask_of_usable_samples(second, lambda present: "imu" in present).tolist() == [False, False]

    def test_reading_by_name(self, tmp_path):
        reader = ShardReader(self.index(tmp_path))
        one, two, three = reader.read("a.tar", [0, 1, 2], inputs=["imu", "image", "sound"])
        assert one.inputs == {"image": photo(1), "imu": series(1)}
        assert (two.inputs, two.texts.captions) == ({"imu": series(2)}, ())
        assert two.present == {"imu"}
        assert (three.inputs, three.texts.captions) == ({"image": photo(3)}, ("picture 3",))
        (one,) = reader.read("a.tar", [0], inputs=["imu"], texts=False)
        assert (one.inputs, one.texts.captions) == ({"imu": series(1)}, ())
        assert one.present == {"image", "imu", "captions", "questions"}
        hashes = [hashlib.sha256(series(n)).hexdigest() for n in (1, 2)]
        assert reader.input_sha256s("a.tar", [2, 1, 0], "imu") == [None, hashes[1], hashes[0]]
        assert reader.input_sha256s("b.tar", [0, 1], "imu") == [None, None]
        assert reader.input_sha256s("b.tar", [1], "sound") == [None]

    def test_a_changed_series_is_refused(self, tmp_path):
        index = self.index(tmp_path)
        at = index.rows("a.tar").to_pylist()[1]["imu.offset"] + 130
        data = (tmp_path / "a.tar").read_bytes()
        (tmp_path / "a.tar").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        reader = ShardReader(index)
        assert reader.read("a.tar", [1], inputs=["image"])[0].key == "2"
        with pytest.raises(DataError, match=r"sample '2' in shard 'a\.tar'.*run the index job again"):
            reader.read("a.tar", [1], inputs=["imu"])

    def test_inputs_that_are_not_read_are_counted_and_how_to_read_them_is_told(self, tmp_path):
        write_tar(tmp_path, "a.tar", [*sample(1, "image", "imu", "text"), *sample(2, "image", "text"), ("2.md5", b"7")])
        index = build_index(str(tmp_path))
        assert index.skipped_member_counts() == {".imu.npy": 1, ".md5": 1}
        assert index.inputs == {"image": "image"}
        (line,) = [line for line in index.report().splitlines() if line.startswith("inputs that are not read")]
        told = re.search(r"data\.index\.inputs=(\[.*\])", line)
        assert line.startswith("inputs that are not read: imu;")
        assert build_index(str(tmp_path), IndexConfig(inputs=json.loads(told[1]))).inputs["imu"] == "series"

    def test_an_input_that_all_samples_lack(self, tmp_path):
        with pytest.raises(DataError, match=r"do without the input 'sound', set data\.index\.inputs") as refused:
            self.index(tmp_path, IndexConfig(inputs=["image?", "sound"], max_quarantine_fraction=1.0))
        assert "missing_sound" in str(refused.value)
        assert '["image?", "sound?"], where it may be missing, or to ["image?"]' in str(refused.value)
        with pytest.raises(DataError, match="has faults in 3 of 5 samples") as refused:
            self.index(tmp_path, IndexConfig(inputs=["imu"]))
        assert "do without" not in str(refused.value), "nothing would be left"

    def test_one_input_in_two_media(self, tmp_path):
        write_tar(tmp_path, "a.tar", sample(1, "imu"))
        write_tar(tmp_path, "b.tar", [("2.imu.jpg", photo(2))])
        with pytest.raises(DataError, match=r"'imu' of medium series in a\.tar and of image in b\.tar; .*rename it"):
            build_index(str(tmp_path), ALONE)

    def test_repeated_series_are_surveyed(self, tmp_path):
        write_tar(tmp_path, "train.tar", [("1.imu.npy", series(1)), ("2.imu.npy", series(1)), ("3.imu.npy", series(3))])
        write_tar(tmp_path, "val.tar", [("4.imu.npy", series(3)), *sample(5, "image")])
        index = build_index(str(tmp_path), ALONE)
        assert index.statistics()["inputs"]["imu"] == {
            "train": {"count": 3, "repeated": 1},
            "val": {"count": 1, "repeated": 0, "in_train": 1},
        }
        lines = index.report()
        assert "inputs 'imu' that another sample of the same split has too: train 1 of 3" in lines
        assert "inputs 'imu' that train has too: val 1 of 1" in lines

    def test_a_key_in_two_shards_belongs_to_the_first(self, tmp_path):
        write_tar(tmp_path, "a.tar", sample(1, "imu"))
        write_tar(tmp_path, "b.tar", [*sample(1, "image"), *sample(2, "imu")])
        index = build_index(str(tmp_path), ALONE)
        assert [(row["key"], row["reason"]) for row in index.quarantine().to_pylist()] == [("1", "duplicate_key")]
        assert index.count(lambda present: "image" in present) == 0
        assert total_sample_count(index._table.to_pylist()[1]) == 1


NEW_MEDIUM = """
from vlmodel.media.base import Medium, MediumError


class Weather(Medium):
    name = "weather"
    extensions = ("wx",)
    columns = {"degrees": "float32"}

    def check_file(self, data, limits):
        try:
            return {"degrees": float(data)}
        except ValueError:
            raise MediumError("undecodable", f"{data!r} is no temperature") from None


MEDIUM = Weather()
"""


@pytest.fixture
def new_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file that a user adds to ``vlmodel/media``."""
    caches = (registry.all_media, registry._media_by_extension, input_of_extension)
    (tmp_path / "weather.py").write_text(NEW_MEDIUM)
    monkeypatch.setattr(media, "__path__", [*media.__path__, str(tmp_path)])
    for cache in caches:
        cache.cache_clear()
    yield
    sys.modules.pop("vlmodel.media.weather", None)
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("new_medium", "in_this_process")
def test_a_new_medium_is_one_file(tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    entries = [("1.wx", b"21.5"), ("1.left.wx", b"3"), ("2.wx", b"warm"), *sample(3, "image")]
    write_tar(folder, "a.tar", entries)
    config = ALONE.model_copy(update={"inputs": ("image?", "left?", "weather?")})
    index = build_index(str(folder), config)
    assert index.inputs == {"image": "image", "left": "weather", "weather": "weather"}
    rows = index.rows("a.tar")
    assert (rows["weather.degrees"].to_pylist(), rows["left.degrees"].to_pylist()) == ([21.5, None], [3.0, None])
    (fault,) = index.quarantine().to_pylist()
    assert (fault["reason"], fault["detail"]) == ("undecodable_weather", "b'warm' is no temperature")
    (record,) = ShardReader(index).read("a.tar", [0], inputs=["weather"])
    assert record.inputs == {"weather": b"21.5"}
