from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.importers._answers import consensus_answer
from pipelines.data.importers.coco import Config, SplitFiles
from pipelines.data.importing.importer import RejectedSample, SourceSample
from pipelines.data.importing.run import import_data
from pipelines.data.tars.errors import FaultReason
from pipelines.errors import DataError
from vlmodel.sample import Question

_NINE = ["two"] * 4 + ["2"] * 5 + ["a pair"]


def _put(path: Path, tree: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))


def _question(number: int, image: int, text: str) -> dict[str, Any]:
    return {"question_id": number, "image_id": image, "question": text}


def _annotation(number: int, image: int, answers: list[str], choice: str = "?") -> dict[str, Any]:
    given = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)]
    return {
        "question_id": number,
        "image_id": image,
        "answers": given,
        "multiple_choice_answer": choice,
        "question_type": "how many",
        "answer_type": "number",
    }


@pytest.fixture
def coco(tmp_path: Path, picture) -> Path:
    """Two train images (one with both kinds of texts), one val image, one test question without answers."""
    for split, number in (("train", 9), ("train", 25), ("val", 42)):
        path = tmp_path / f"{split}2014" / f"COCO_{split}2014_{number:012d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(number, "JPEG"))
    (tmp_path / "test2015").mkdir()
    (tmp_path / "test2015" / "COCO_test2015_000000000001.jpg").write_bytes(picture(1, "JPEG"))
    captions = {
        "images": [{"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "height": 4, "width": 6} for n in (25, 9)],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "Two dogs run. "},
            {"id": 2, "image_id": 25, "caption": "Ein Zug fährt."},
            {"id": 3, "image_id": 9, "caption": "Dogs."},
        ],
    }
    _put(tmp_path / "annotations" / "captions_train2014.json", captions)
    for split, year, questions, answers in (
        ("train", 2014, [_question(9000, 9, "How many dogs?")], [_annotation(9000, 9, _NINE)]),
        ("val", 2014, [_question(42001, 42, "Is it?")], [_annotation(42001, 42, ["yes"] * 5 + ["no"] * 5, "no")]),
        ("test", 2015, [_question(1000, 1, "What?")], None),
    ):
        tree = {"data_subtype": f"{split}{year}", "questions": questions}
        _put(tmp_path / f"v2_OpenEnded_mscoco_{split}{year}_questions.json", tree)
        if answers:
            _put(tmp_path / f"v2_mscoco_{split}{year}_annotations.json", {"annotations": answers})
    _put(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": []})
    return tmp_path


def test_captions_and_questions_of_an_image_are_one_sample(coco: Path, picture, read_all) -> None:
    records, rejects = read_all(Config(folder=str(coco)))
    assert rejects == []
    assert {key: record.split for key, record in records.items()} == {
        "COCO_train2014_000000000009": "train",
        "COCO_train2014_000000000025": "train",
        "COCO_val2014_000000000042": "val",
        "COCO_test2015_000000000001": "test",
    }
    dogs = records["COCO_train2014_000000000009"]
    assert dogs.inputs["image"][0] == picture(9, "JPEG")
    assert dogs.inputs["image"][1] == "jpg"
    assert dogs.extra == {"image_id": 9}
    assert dogs.texts.captions == ("Two dogs run.", "Dogs.")
    assert dogs.texts.questions == (Question("How many dogs?", "2", tuple(_NINE), "9000"),)
    assert records["COCO_train2014_000000000025"].texts.captions == ("Ein Zug fährt.",)
    (tied,) = records["COCO_val2014_000000000042"].texts.questions
    assert (tied.answer, len(tied.answers)) == ("no", 10)
    assert records["COCO_test2015_000000000001"].texts.questions == (Question("What?", id="1000"),)


def test_captions_alone_and_questions_alone(coco: Path, read_all) -> None:
    only_captions = Config(folder=str(coco), train=SplitFiles(captions="annotations/captions_train2014.json"))
    for file in coco.glob("*.json"):
        file.unlink()
    records, _ = read_all(only_captions)
    assert len(records) == 2
    assert not any(record.texts.questions for record in records.values())


def test_texts_alone_need_no_images(coco: Path, read_all) -> None:
    for file in coco.rglob("*.jpg"):
        file.unlink()
    records, rejects = read_all(Config(folder=str(coco), inputs="text"))
    assert rejects == []
    assert set(records) == {
        "COCO_train2014_000000000009",
        "COCO_train2014_000000000025",
        "COCO_val2014_000000000042",
        "COCO_test2015_000000000001",
    }
    dogs = records["COCO_train2014_000000000009"]
    assert (dogs.inputs, dogs.texts.captions, len(dogs.texts.questions)) == ({}, ("Two dogs run.", "Dogs."), 1)


@pytest.mark.parametrize(
    ("name", "split"), [("captions", "train"), ("captions_train", "train"), ("captions_val", "val")]
)
def test_captions_of_ones_own_need_no_year(tmp_path: Path, picture, read_all, name: str, split: str) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(0, "JPEG"))
    tree = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}
    _put(tmp_path / f"{name}.json", tree)
    records, rejects = read_all(Config(folder=str(tmp_path)))
    assert rejects == []
    assert [(record.split, record.texts.captions) for record in records.values()] == [(split, ("a dog",))]


def test_2017_names_images_in_a_tar(tmp_path: Path, picture, read_all, write_tar) -> None:
    write_tar(tmp_path / "val2017.tar", {"val2017/000000000139.jpg": picture(139, "JPEG")})
    questions = {"questions": [_question(1, 139, "Who?"), _question(2, 139, "Why?")]}
    _put(tmp_path / "vqa" / "my_questions.json", questions)
    config = Config(folder=str(tmp_path), val=SplitFiles(questions="vqa/my_questions.json"))
    records, rejects = read_all(config)
    assert rejects == []
    assert records["000000000139"].inputs["image"][0] == picture(139, "JPEG")
    assert [question.id for question in records["000000000139"].texts.questions] == ["1", "2"]


def test_a_bad_record_costs_only_itself(coco: Path, read_all) -> None:
    (coco / "train2014" / "COCO_train2014_000000000025.jpg").unlink()
    captions = json.loads((coco / "annotations/captions_train2014.json").read_text())
    captions["annotations"] += [{"image_id": 9, "caption": " "}, {"image_id": 77, "caption": "no such image"}]
    _put(coco / "annotations/captions_train2014.json", captions)
    questions = [_question(1, 9, "Unanswered?"), {"image_id": 9}, _question(9000, 9, "How many dogs?")]
    _put(coco / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    records, rejects = read_all(Config(folder=str(coco)))
    assert [question.id for question in records["COCO_train2014_000000000009"].texts.questions] == ["9000"]
    assert [(reject.key, reject.reason) for reject in rejects] == [
        ("captions_train2014.json", FaultReason.BAD_SCHEMA),
        ("77", "missing_image"),
        ("1", FaultReason.MISSING_TEXT),
        ("v2_OpenEnded_mscoco_train2014_questions.json", FaultReason.BAD_SCHEMA),
        ("COCO_train2014_000000000025", "missing_image"),
    ]


@pytest.mark.parametrize(
    ("annotation", "answer", "answers"),
    [
        ({"answers": [{"answer": "cat", "answer_confidence": "yes"}, {"answer": "dog"}]}, "cat", ("cat", "dog")),
        ({"multiple_choice_answer": " cat "}, "cat", ()),
        ({"answer": "cat"}, "cat", ()),
        ({"answers": [], "multiple_choice_answer": "cat"}, "cat", ()),
        ({"answers": ["dog", "cat"], "multiple_choice_answer": "cat"}, "cat", ("dog", "cat")),
        ({"answers": [{"answer": " "}], "multiple_choice_answer": "cat"}, "cat", ()),
        ({"answers": None, "multiple_choice_answer": 3}, None, None),
        ({"answers": [{"answer": ""}]}, None, None),
    ],
)
def test_annotations_that_are_almost_vqas(coco: Path, read_all, annotation, answer, answers) -> None:
    rows = [{"question_id": 9000, **annotation}, {"answers": ["no id"]}, _annotation(5, 9, ["x"])]
    _put(coco / "v2_mscoco_train2014_annotations.json", {"annotations": rows})
    reading = Config(folder=str(coco)).read()
    entries = list(reading.samples)
    records = {entry.key: entry for entry in entries if isinstance(entry, SourceSample)}
    expected = (Question("How many dogs?", answer, answers, "9000"),) if answer else ()
    assert records["COCO_train2014_000000000009"].texts.questions == expected
    rejects = [(entry.key, entry.reason) for entry in entries if isinstance(entry, RejectedSample)]
    assert rejects == ([] if answer else [("9000", FaultReason.MISSING_TEXT)])
    assert reading.count_skipped_files() == {
        "answers without question_id": 1,
        "answers to questions that are not asked": 1,
        ".json files": 1,  # The questions of test-dev2015.
    }


def test_linked_images_and_a_home_folder(coco: Path, picture, read_all, monkeypatch, tmp_path_factory) -> None:
    root = tmp_path_factory.mktemp("linked")
    for path in coco.iterdir():
        (root / path.name).symlink_to(path)
    (root / "train2014" / "._COCO_train2014_000000000009.jpg").write_bytes(b"companion")
    monkeypatch.setenv("HOME", str(root.parent))
    records, rejects = read_all(Config(folder=f"~/{root.name}"))
    assert (len(records), rejects) == (4, [])
    records, rejects = read_all(Config(folder=str(root), images=f"~/{root.name}"))
    assert (len(records), rejects) == (4, [])


def test_one_file_in_two_splits(coco: Path) -> None:
    file = "train2014/COCO_train2014_000000000009.jpg"
    tree = {"images": [{"id": 1, "file_name": file}], "annotations": [{"image_id": 1, "caption": "again"}]}
    _put(coco / "annotations" / "captions_val2014.json", tree)
    summary = import_data(Config(folder=str(coco)), coco / "out", progress=False)
    assert {split: counts.samples for split, counts in summary.splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert summary.rejected == {"duplicate_key": 1}


def test_an_unusable_source_says_what_to_do(coco: Path, tmp_path_factory) -> None:
    with pytest.raises(DataError, match=r"holds neither captions \(as .*captions\.json\) nor questions \(as v2_"):
        Config(folder=str(tmp_path_factory.mktemp("empty"))).read()
    with pytest.raises(DataError, match=r"source\.train\.captions = 'x\.json'.*does not exist"):
        Config(folder=str(coco), train=SplitFiles(captions="x.json")).read()
    with pytest.raises(DataError, match=r"image folder or tar '.*pictures' does not exist"):
        Config(folder=str(coco), images="pictures").read()
    _put(coco / "annotations" / "captions_train2017.json", {})
    with pytest.raises(DataError, match=r"several files for source\.train\.captions .*name one of them"):
        Config(folder=str(coco)).read()
    (coco / "annotations" / "captions_train2014.json").unlink()
    with pytest.raises(DataError, match="has no list 'annotations'"):
        Config(folder=str(coco)).read()


def test_consensus() -> None:
    assert consensus_answer(_NINE) == "2"
    assert consensus_answer(["b", "a", "a", "b"]) == "b"
    assert consensus_answer(["b", "a"], preferred="a") == "a"
    assert consensus_answer(["b", "b", "a"], preferred="a") == "b"
    assert consensus_answer(["", " "]) is None
