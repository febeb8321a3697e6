"""What samples tell together: images and texts that splits share, images twice in a split, shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.data.index import statistics as module
from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.index.statistics import describe_shapes
from tests.pipelines.data.tar_maker import Entry, photo, write_tar

pytestmark = pytest.mark.usefixtures("ray_local")

LENIENT = IndexConfig(max_quarantine_fraction=1.0, validation_fraction=0.0)


def sample(key: str, image: int, *captions: str, size: tuple[int, int] = (40, 40)) -> list[Entry]:
    return [(f"{key}.jpg", photo(image, size)), (f"{key}.json", json.dumps({"captions": captions}).encode())]


def indexed(folder: Path, config: IndexConfig = LENIENT, **tars: list[list[Entry]]) -> Index:
    for name, of_tar in tars.items():
        write_tar(folder, f"{name}.tar", [entry for of_sample in of_tar for entry in of_sample])
    return build_index(str(folder), config)


def lines(index: Index, word: str) -> list[str]:
    return [line for line in index.report().splitlines() if line.startswith(word)]


def test_images_that_are_there_twice(tmp_path):
    index = indexed(
        tmp_path,
        train_0=[sample(f"a{n}", n % 3, f"text {n}") for n in range(5)],
        train_1=[sample("b0", 0, "again"), sample("b1", 7, "new")],
        val=[sample(f"v{n}", n, f"val {n}") for n in (1, 2, 9)],
        test=[sample(f"t{n}", 20 + n, f"test {n}") for n in range(4)],
    )
    images = index.statistics()["inputs"]["image"]
    assert images == {
        "train": {"count": 7, "repeated": 3},
        "val": {"count": 3, "repeated": 0, "in_train": 2},
        "test": {"count": 4, "repeated": 0, "in_train": 0},
    }
    assert lines(index, "images that another") == [
        "images that another sample of the same split has too: train 3 of 7; the prepare job joins these"
    ]
    (line,) = lines(index, "images that train has too")
    assert "val 2 of 3, test 0 of 4" in line
    assert "source.group" in line


def test_samples_that_are_left_out_do_not_count(tmp_path):
    index = indexed(tmp_path, train_0=[sample("a", 1, "x")], train_1=[sample("a", 1, "x"), sample("b", 2, "y")])
    assert index.quarantine_counts() == {"duplicate_key": 1}
    assert index.statistics()["inputs"]["image"] == {"train": {"count": 2, "repeated": 0}}
    assert index.statistics()["texts"]["train"]["count"] == 2


@pytest.mark.parametrize(
    ("val_of_train", "test_of_train", "told"), [(40, 0, True), (40, 20, True), (40, 38, False), (3, 0, False)]
)
def test_texts_that_val_shares_with_train_and_test_does_not(tmp_path, val_of_train, test_of_train, told):
    def of(name: str, start: int, shared: int) -> list[list[Entry]]:
        texts = [f"Question {n}" if n < shared else f"{name} {n}" for n in range(40)]
        return [sample(f"{name}{n}", start + n, text) for n, text in enumerate(texts)]

    index = indexed(
        tmp_path,
        train=[sample(f"a{n}", n, f"question {n}", f"question {n}") for n in range(40)],
        val=of("val", 100, val_of_train),
        test=of("test", 200, test_of_train),
    )
    texts = index.statistics()["texts"]
    assert (texts["val"]["in_train"], texts["test"]["in_train"]) == (val_of_train, test_of_train)
    assert texts["train"] == {"count": 40, "repeated": 0}
    found = lines(index, "texts that train has too")
    assert bool(found) is told
    if told:
        assert f"val {val_of_train} of 40, test {test_of_train} of 40" in found[0]


def test_a_split_by_the_hash_of_the_key_is_compared_too(tmp_path):
    index = indexed(
        tmp_path,
        LENIENT.model_copy(update={"validation_fraction": 0.3}),
        train=[sample(f"a{n}", n % 2, "the same") for n in range(30)],
    )
    counts, survey = index.counts(), index.statistics()
    assert survey["inputs"]["image"]["val"] == {
        "count": counts["val"],
        "repeated": counts["val"] - 2,
        "in_train": counts["val"],
    }
    assert survey["texts"]["val"] == {"count": 1, "repeated": 0, "in_train": 1}
    assert not lines(index, "texts that train"), "without a test split nothing tells how many texts are usual"


def test_of_very_many_a_part_is_compared(tmp_path, monkeypatch):
    tars = {
        "train": [sample(f"a{n}", n, f"text {n}") for n in range(60)],
        "val": [sample(f"v{n}", n, f"text {n}") for n in range(30)],
    }
    monkeypatch.setattr(module, "_MAX_COMPARED", 45)
    survey = indexed(tmp_path, **tars).statistics()
    for found in (survey["inputs"]["image"], survey["texts"]):
        assert 0 < found["train"]["count"] < 60
        assert 0 < found["val"]["count"] == found["val"]["in_train"] < 30


def test_shapes(tmp_path):
    sizes = [(40, 40), (40, 36), (80, 40), (40, 60)]
    index = indexed(tmp_path, train=[sample(f"a{n}", n, "x", size=size) for n, size in enumerate(sizes)])
    assert index.statistics()["shapes"] == {"count": 4, "elongated": 2, "median": pytest.approx(1.306, abs=1e-3)}
    assert describe_shapes(index.statistics(), "squash") == []
    write_tar(tmp_path, "train_1.tar", sample("b", 9, "x", size=(80, 40)))
    survey = build_index(str(tmp_path), LENIENT).statistics()
    (bent,), (cut,) = (describe_shapes(survey, resize) for resize in ("squash", "crop"))
    assert bent.startswith("60% of the images have a side at least 1.25 times the other (median 1.50)")
    assert "processor.resize=squash distorts them" in bent
    assert "processor.resize=crop cuts off 33% of the median one" in cut
    assert describe_shapes(survey, "pad") == []


def test_texts_alone_and_images_alone(tmp_path):
    write_tar(tmp_path, "a.tar", [("1.txt", b"a"), ("2.txt", b"b"), ("3.txt", b"A"), ("4.jpg", photo(1))])
    texts = build_index(str(tmp_path), LENIENT.model_copy(update={"inputs": ("text",)}))
    assert texts.statistics() == {
        "inputs": {},
        "texts": {"train": {"count": 2, "repeated": 0}},
        "shapes": {"count": 0, "elongated": 0, "median": 1.0},
    }
    images = build_index(str(tmp_path), LENIENT.model_copy(update={"inputs": ("image",)}))
    assert images.statistics()["texts"] == {}
    assert images.statistics()["inputs"]["image"] == {"train": {"count": 1, "repeated": 0}}
