from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.importers.easy_vqa import Config
from pipelines.data.importing.importer import SourceSample
from pipelines.data.tars.errors import FaultReason
from pipelines.errors import DataError
from vlmodel.sample import Question, SampleTexts


def _layout(root: Path, picture, questions: dict[str, list[Any]], images: dict[str, list[int]]) -> Path:
    for split, rows in questions.items():
        (root / split / "images").mkdir(parents=True)
        (root / split / "questions.json").write_text(json.dumps(rows))
        for number in images[split]:
            (root / split / "images" / f"{number}.png").write_bytes(picture(number))
    (root / "answers.txt").write_text("red\nyes\n")
    return root


def test_one_sample_per_image_with_all_its_questions(tmp_path: Path, picture, read_all) -> None:
    rows = [["what color?", "red", 1], ["is it?", "yes", 0], ["is there?", "yes", 1]]
    _layout(tmp_path / "data", picture, {"train": rows, "test": [["q?", "no", 1]]}, {"train": [0, 1], "test": [1]})
    for folder in (tmp_path, tmp_path / "data"):
        records, rejects = read_all(Config(folder=str(folder)))
        assert rejects == []
        assert {key: record._replace(file=None) for key, record in records.items()} == {
            "train-0": SourceSample(
                "train",
                "train-0",
                {"image": (picture(0), "png")},
                SampleTexts((), (Question("is it?", "yes"),)),
                {"image_id": 0},
            ),
            "train-1": SourceSample(
                "train",
                "train-1",
                {"image": (picture(1), "png")},
                SampleTexts((), (Question("what color?", "red"), Question("is there?", "yes"))),
                {"image_id": 1},
            ),
            "test-1": SourceSample(
                "test",
                "test-1",
                {"image": (picture(1), "png")},
                SampleTexts((), (Question("q?", "no"),)),
                {"image_id": 1},
            ),
        }


def test_questions_alone_need_no_images(tmp_path: Path, read_all) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "questions.json").write_text(json.dumps([["is it?", "yes", 0], ["what?", "red", 0]]))
    config = Config(folder=str(tmp_path), inputs="text")
    records, rejects = read_all(config)
    assert rejects == []
    questions = (Question("is it?", "yes"), Question("what?", "red"))
    assert records == {"train-0": SourceSample("train", "train-0", {}, SampleTexts((), questions), {"image_id": 0})}
    assert config.fingerprint()


def test_a_bad_row_or_missing_image_costs_only_itself(tmp_path: Path, picture, read_all) -> None:
    rows = [["q?", "yes", 0], ["q?", "yes"], ["q?", 3, 0], [" ", "no", 0], ["lost?", "yes", 9], "x", ["p?", "no", 0]]
    _layout(tmp_path, picture, {"train": rows}, {"train": [0]})
    records, rejects = read_all(Config(folder=str(tmp_path)))
    assert [question.question for question in records["train-0"].texts.questions] == ["q?", "p?"]
    assert [(reject.key, reject.reason) for reject in rejects] == [
        *((f"train/questions.json[{number}]", FaultReason.BAD_SCHEMA) for number in (1, 2, 3, 5)),
        ("train-9", "missing_image"),
    ]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "train/questions.json").unlink(), "no data/train/questions.json"),
        (lambda root: (root / "train/questions.json").write_text("[["), "not valid UTF-8 JSON"),
        (lambda root: (root / "train/questions.json").write_bytes(b'["\xff"]'), "not valid UTF-8 JSON"),
        (lambda root: (root / "train/questions.json").write_text("{}"), "not a JSON list"),
        (lambda root: (root / "train/images").rename(root / "train/pictures"), "images of split 'train' are missing"),
    ],
)
def test_an_unusable_source_says_what_to_do(tmp_path: Path, picture, break_it, message: str) -> None:
    _layout(tmp_path, picture, {"train": [["q?", "yes", 0]]}, {"train": [0]})
    break_it(tmp_path)
    with pytest.raises(DataError, match=message):
        Config(folder=str(tmp_path)).read()


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(DataError, match=r"source folder '/no/such' does not exist; set source\.folder"):
        Config(folder="/no/such").fingerprint()


def test_the_complete_data_set(shared_data, read_all) -> None:
    root = shared_data("easy-vqa")
    config = Config(folder=str(root))
    records, rejects = read_all(config)
    assert rejects == []
    assert config.read().total == len(records) == 5000
    splits = Counter(record.split for record in records.values())
    questions: Counter[str] = Counter()
    for record in records.values():
        questions[record.split] += len(record.texts.questions)
    assert splits == {"train": 4000, "test": 1000}
    assert questions == {"train": 38_575, "test": 9_673}
    answers = {question.answer for record in records.values() for question in record.texts.questions}
    assert answers == set((root / "data/answers.txt").read_text().split())
    with tarfile.open(root / "test_images.tar") as tar:
        for name in ("data/test/images/0.png", "data/test/images/999.png"):
            member = tar.extractfile(name)
            assert member is not None
            assert records[f"test-{Path(name).stem}"].inputs["image"][0] == member.read()
    first = json.loads((root / "data/train/questions.json").read_text())[0]
    assert first == ["what is the blue shape?", "rectangle", 0]
    assert records["train-0"].texts.questions[0] == Question("what is the blue shape?", "rectangle")
