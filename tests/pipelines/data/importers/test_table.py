from __future__ import annotations

import csv
import hashlib
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pipelines.data.importers.table import Config
from pipelines.data.tars.errors import FaultReason
from pipelines.errors import DataError
from vlmodel.config import ConfigError, parse_config
from vlmodel.sample import Question, SampleTexts


@pytest.fixture
def images(tmp_path: Path, picture) -> Path:
    """A folder with img/0.png, img/1.png and img/2.png."""
    (tmp_path / "img").mkdir()
    for number in range(3):
        (tmp_path / "img" / f"{number}.png").write_bytes(picture(number))
    return tmp_path


def _jsonl(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_csv_rows_of_one_image_are_one_sample(images: Path, picture, read_all) -> None:
    (images / "t.csv").write_text(
        "image,caption,question,answer,split,question_id\n"
        'img/0.png,"Zwei Häuser, rot",how many?,2,train,7\n'
        "img/1.png,,is it?,yes,validation,8\n"
        'img/0.png,"Zwei Häuser, rot",wo?,hier,train,9\n',
        encoding="utf-8",
    )
    records, rejects = read_all(Config(file=str(images / "t.csv")))
    assert rejects == []
    assert list(records) == ["img/0", "img/1"]
    assert records["img/0"].inputs["image"][0] == picture(0)
    assert records["img/0"].texts.captions == ("Zwei Häuser, rot",)
    assert records["img/0"].texts.questions == (Question("how many?", "2", id="7"), Question("wo?", "hier", id="9"))
    assert records["img/1"].split == "val"
    assert records["img/1"].texts.captions == ()


def test_named_columns_no_header_and_a_tar(tmp_path: Path, picture, read_all, write_tar) -> None:
    write_tar(tmp_path / "photos.tar", {"deep/x.1.PNG": picture(1), "deep/y.png": picture(2)})
    (tmp_path / "pairs.tsv").write_text("x.1.PNG\ta dog\tmatch\ny.png\ta cat\tno-match\n")
    config = Config(
        file=str(tmp_path / "pairs.tsv"),
        images="photos.tar",
        header=["file", "text", "label"],
        image="file",
        question="text",
        answer="label",
    )
    records, rejects = read_all(config)
    assert rejects == []
    (dotted, plain) = records.values()
    # The key keeps apart what the name without its dot would not.
    assert dotted.key == f"x_1_{hashlib.sha256(b'x.1').hexdigest()[:8]}"
    assert (dotted.inputs["image"][0], dotted.inputs["image"][1], plain.key) == (picture(1), "png", "y")
    assert plain.texts.questions == (Question("a cat", "no-match"),)


def test_jsonl_lists_and_annotators(images: Path, read_all) -> None:
    rows = [
        {"image": "img/0.png", "captions": ["a", "b"], "key": "first", "question": ["p?", "q?"], "answer": ["x", None]},
        {"image": "img/1.png", "question": "r?", "answers": ["two", "2", "2"], "key": 12},
        {"image": "img/2.png", "question": "n?", "answer": 3.0, "key": "a.b/c"},
    ]
    records, rejects = read_all(Config(file=_jsonl(images / "t.jsonl", rows)))
    assert rejects == []
    assert records["first"].texts.captions == ("a", "b")
    assert records["first"].texts.questions == (Question("p?", "x"), Question("q?"))
    assert records["12"].texts.questions == (Question("r?", "2", ("two", "2", "2")),)
    (last,) = [record for key, record in records.items() if key.startswith("a_b/c_")]
    assert last.texts.questions[0].answer == "3"


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_bytes(tmp_path: Path, picture, read_all, as_struct: bool) -> None:
    cells = [picture(1), picture(2, "JPEG"), picture(1), picture(3, "WEBP"), picture(4, "BMP"), picture(5, "GIF")]
    table = {
        "image": [{"bytes": data, "path": None} for data in cells] if as_struct else cells,
        "question": [f"q{number}?" for number in range(6)],
        "answer": [0, 1, 2, 3, 4, 5],
        "unused": [None] * 6,
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    records, rejects = read_all(Config(file=str(tmp_path / "t.parquet")))
    assert rejects == []
    assert [record.inputs["image"][1] for record in records.values()] == ["png", "jpg", "webp", "bmp", "gif"]
    assert {record.inputs["image"][0] for record in records.values()} == set(cells)
    twice = records[hashlib.sha256(picture(1)).hexdigest()[:32]]
    assert [(question.question, question.answer) for question in twice.texts.questions] == [("q0?", "0"), ("q2?", "2")]


def test_bad_jsonl_rows_cost_only_themselves(images: Path, read_all) -> None:
    good = [{"image": f"img/{number}.png", "caption": "c"} for number in range(2)]
    bad = [
        ({"caption": "c"}, "missing_image"),
        ({"image": 3, "caption": "c"}, FaultReason.BAD_SCHEMA),
        ({"image": "a.txt", "caption": "c"}, "undecodable_image"),
        ({"image": "img/2.png", "caption": "c", "split": "extra"}, FaultReason.BAD_SCHEMA),
        ({"image": "img/2.png", "caption": {"de": "c"}}, FaultReason.BAD_SCHEMA),
        ({"image": "img/2.png", "question": "q?", "answer": True}, FaultReason.BAD_SCHEMA),
        ({"image": "img/2.png", "question": ["q?"], "answer": ["a", "b"]}, FaultReason.BAD_SCHEMA),
        ({"image": "img/0.png", "caption": "d", "split": "test"}, FaultReason.BAD_SCHEMA),
        (["no", "object"], FaultReason.BAD_SCHEMA),
        # Only reading the image shows the rest.
        ({"image": "img/9.png", "caption": "c"}, "missing_image"),
        ({"image": "../img/0.png", "caption": "c"}, FaultReason.UNSAFE_MEMBER),
        ({"image": "/etc/0.png", "caption": "c"}, FaultReason.UNSAFE_MEMBER),
    ]
    file = images / "t.jsonl"
    _jsonl(file, [good[0], *(row for row, _ in bad), good[1]])
    with file.open("ab") as lines:
        lines.write(b'\n{"image": "img/2.png", "caption": "caf\xe9"}\n{"image": \n')
    records, rejects = read_all(Config(file=str(file)))
    assert set(records) == {"img/0", "img/1"}
    assert records["img/0"].texts.captions == ("c",)
    expected = [reason for _, reason in bad]
    expected[9:9] = [FaultReason.BAD_UTF8, FaultReason.BAD_JSON]
    assert [reject.reason for reject in rejects] == expected
    assert rejects[0].key == "t.jsonl:2"


def test_bad_csv_rows_cost_only_themselves(images: Path, read_all) -> None:
    (images / "t.csv").write_bytes(
        b"image,caption\nimg/0.png,a\nimg/1.png\nimg/1.png,caf\xe9\n,c\nimg/1.png,"
        + b"x" * 200_000
        + b"\nimg/2.png,z\n"
    )
    records, rejects = read_all(Config(file=str(images / "t.csv")))
    assert set(records) == {"img/0", "img/2"}
    assert [(reject.key, reject.reason) for reject in rejects] == [
        ("t.csv:3", FaultReason.BAD_SCHEMA),
        ("t.csv:4", FaultReason.BAD_UTF8),
        ("t.csv:5", "missing_image"),
        ("t.csv:6", FaultReason.BAD_SCHEMA),
    ]


def test_bytes_that_are_no_image_and_keys_used_twice(tmp_path: Path, picture, read_all) -> None:
    table = {"image": [b"text", picture(1), picture(2), picture(3)], "caption": ["a", "b", "c", "d"]}
    table["key"] = ["k", "m", "m", "n"]
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    records, rejects = read_all(Config(file=str(tmp_path / "t.parquet")))
    assert {key: record.inputs["image"][0] for key, record in records.items()} == {"m": picture(1), "n": picture(3)}
    assert [(reject.key, reject.reason) for reject in rejects] == [
        ("t.parquet:2", FaultReason.DUPLICATE_KEY),
        ("k", "undecodable_image"),
    ]


def test_each_row_of_texts_alone_is_a_sample(tmp_path: Path, read_all) -> None:
    (tmp_path / "said.csv").write_text(
        "question,answer,split,image\nwhat is grass?,green,train,../no.tiff\n\nwhat is grass?,green,val,\n"
    )
    config = Config(file=str(tmp_path / "said.csv"), inputs="text", images="no/such/folder")
    records, rejects = read_all(config)
    assert rejects == []
    grass = SampleTexts((), (Question("what is grass?", "green"),))
    assert {key: (record.split, record.texts) for key, record in records.items()} == {
        "said-00000002": ("train", grass),
        "said-00000004": ("val", grass),
    }
    assert [record.inputs for record in records.values()] == [{}, {}]
    assert config.fingerprint() == config.fingerprint()


def test_rows_of_texts_alone_with_one_key_are_one_sample(tmp_path: Path, read_all) -> None:
    rows: list[dict[str, Any]] = [
        {"key": "grass", "caption": "it is green"},
        {"key": "grass", "question": "what colour?", "answer": "green"},
        {"caption": ["a sky", "a blue sky"]},
        {"key": "grass", "caption": "at night", "split": "test"},
        {"key": "a.b", "caption": 3},
        {"key": ["no", "key"], "caption": "x"},
    ]
    records, rejects = read_all(Config(file=_jsonl(tmp_path / "t.jsonl", rows), inputs="text"))
    dotted = f"a_b_{hashlib.sha256(b'a.b').hexdigest()[:8]}"
    assert {key: record.texts for key, record in records.items()} == {
        "grass": SampleTexts(("it is green",), (Question("what colour?", "green"),)),
        "t-00000003": SampleTexts(("a sky", "a blue sky")),
        dotted: SampleTexts(("3",)),
    }
    assert [(reject.key, reject.reason) for reject in rejects] == [
        ("t.jsonl:4", FaultReason.BAD_SCHEMA),
        ("t.jsonl:6", FaultReason.BAD_SCHEMA),
    ]
    assert rejects[0].detail == "sample 'grass' is in split 'train' by another row, 'test' by this one"


def test_images_alone(images: Path, picture, read_all) -> None:
    rows = [
        {"image": "img/0.png", "caption": {"no": "text"}, "question": ["q?"], "answer": "a"},
        {"image": "img/0.png"},
        {"image": "img/1.png", "split": "val", "key": "one"},
        {"caption": "c"},
    ]
    records, rejects = read_all(Config(file=_jsonl(images / "t.jsonl", rows), inputs="image"))
    assert {key: (record.split, record.inputs["image"][0], record.texts) for key, record in records.items()} == {
        "img/0": ("train", picture(0), SampleTexts()),
        "one": ("val", picture(1), SampleTexts()),
    }
    assert [(reject.key, reject.reason) for reject in rejects] == [("t.jsonl:4", "missing_image")]


@pytest.mark.parametrize("only", ["text", "image"])
def test_columns_that_are_not_needed_may_be_absent(tmp_path: Path, picture, read_all, only: str) -> None:
    columns = {"caption": ["a", "b"]} if only == "text" else {"image": [picture(0), picture(1)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    records, rejects = read_all(Config(file=str(tmp_path / "t.parquet"), inputs=only))
    assert rejects == []
    if only == "text":
        assert {key: record.texts.captions for key, record in records.items()} == {
            "t-00000000": ("a",),
            "t-00000001": ("b",),
        }
    else:
        assert [record.inputs["image"][0] for record in records.values()] == [picture(0), picture(1)]


def test_an_unusable_table_says_what_to_do(images: Path) -> None:
    table = images / "t.csv"
    table.write_text("picture,words\nimg/0.png,a\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"file": "/no/such.csv"}, r"table '/no/such.csv' does not exist; set source\.file"),
        ({"file": str(images / "img/0.png")}, r"none of \.csv, .*convert it"),
        (
            {"file": str(table)},
            r"no column 'image' \(source\.image\); .* 'picture', 'words': set source\.image .* source\.inputs=text",
        ),
        ({"file": str(table), "inputs": "image"}, r"are 'picture', 'words': set source\.image to one of them$"),
        (
            {"file": str(table), "image": "picture"},
            r"neither a caption nor a question nor a class column; .* or take images alone by source\.inputs=image",
        ),
        ({"file": str(table), "inputs": "text"}, "neither a caption nor a question nor a class column"),
        ({"file": str(table), "image": "picture", "captions": ["word"]}, r"no column 'word' \(source\.captions\)"),
        (
            {"file": str(table), "image": "picture", "captions": ["words"], "images": "x"},
            "folder or tar '.*x' does not",
        ),
    ]
    for settings, message in cases:
        with pytest.raises(DataError, match=message):
            list(Config(**settings).read().samples)
    (images / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        Config(file=str(images / "t.parquet")).read()


def test_flickr_matching_triples(shared_data, read_all) -> None:
    root = shared_data("flickr8k-subset")
    config = Config(
        file=str(root / "cmp9137_itm" / "flickr8k.DevImages.txt"),
        images="../flickr8k_images.tar",
        delimiter="\t",
        header=["image", "sentence", "label"],
        question="sentence",
        answer="label",
    )
    records, rejects = read_all(config)
    assert rejects == []
    answers = [question.answer for record in records.values() for question in record.texts.questions]
    assert (answers.count("match"), answers.count("no-match")) == (55, 81)


def test_daquar_as_a_table(shared_data, tmp_path: Path, read_all) -> None:
    root = shared_data("daquar-subset")
    lines = (root / "all_qa_pairs.txt").read_text().splitlines()
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer"])
        for question, answer in zip(lines[::2], lines[1::2], strict=True):
            writer.writerow([f"images/{question.split()[-2]}.png", question, answer])
    records, rejects = read_all(Config(file=str(tmp_path / "t.csv"), images=str(root / "daquar_images.tar")))
    assert rejects == []
    assert len(records) == 39  # the fortieth has no question
    assert sum(len(record.texts.questions) for record in records.values()) == 359
    with tarfile.open(root / "daquar_images.tar") as tar:
        member = tar.extractfile("images/image6.png")
        assert member is not None
        assert records["images/image6"].inputs["image"][0] == member.read()


def test_one_image_in_several_spellings_is_one_sample(images: Path, picture, read_all) -> None:
    (images / "link").symlink_to("img")
    (images / "t.csv").write_text(
        "image,caption,split\nimg/0.png,a,train\n./img/0.png,b,val\nimg//0.png,c,train\n0.png,d,test\n"
        "img\\0.png,e,train\nlink/0.png,f,train\n"
        f"{images}/img/0.png,g,\nx/../img/0.PNG,h,train\n1.png,i,val\n"
    )
    records, rejects = read_all(Config(file=str(images / "t.csv")))
    assert {key: (record.split, record.texts.captions) for key, record in records.items()} == {
        "img/0": ("train", ("a", "c", "e", "f", "g", "h")),
        "1": ("val", ("i",)),
    }
    assert [(reject.key, reject.reason) for reject in rejects] == [
        ("t.csv:3", FaultReason.BAD_SCHEMA),
        ("t.csv:5", FaultReason.BAD_SCHEMA),
    ]
    assert rejects[0].detail == "its image is in split 'train' by another row, 'val' by this one"


def test_one_image_under_two_keys_is_of_one_split(images: Path, read_all) -> None:
    rows = [
        {"image": "img/0.png", "key": "a", "caption": "x"},
        {"image": "./img/0.png", "key": "b", "caption": "y"},
        {"image": "0.png", "key": "c", "caption": "z", "split": "test"},
    ]
    records, rejects = read_all(Config(file=_jsonl(images / "t.jsonl", rows)))
    assert set(records) == {"a", "b"}
    assert [(reject.key, reject.reason) for reject in rejects] == [("t.jsonl:3", FaultReason.BAD_SCHEMA)]


def test_images_that_no_row_names_are_counted(images: Path) -> None:
    (images / "t.csv").write_text("image,caption\n0.png,a\n")
    (images / "notes.md").write_text("x")
    reading = Config(file=str(images / "t.csv")).read()
    list(reading.samples)
    assert reading.count_skipped_files() == {"images that nothing names": 2, ".md files": 1}


@pytest.mark.parametrize("as_json", [True, False])
def test_a_cell_that_is_missing_is_missing(images: Path, read_all, as_json: bool) -> None:
    nan = float("nan")
    columns = ("image", "caption", "question", "answer", "split", "key", "question_id")
    cells: list[tuple[Any, ...]] = [
        ("img/0.png", "c", nan, nan, nan, nan, nan),
        ("img/1.png", None, "q?", None, None, None, None),
        (nan, "d", None, None, None, None, None),
        ("img/2.png", nan, nan, None, "", None, None),
    ]
    rows = [dict(zip(columns, row, strict=True)) for row in cells]
    if as_json:
        file = _jsonl(images / "t.jsonl", rows)
    else:  # As pandas writes what was turned into text.
        file = str(images / "t.csv")
        with open(file, "w", newline="") as out:
            csv.writer(out).writerows([columns, *([str(cell or "") for cell in row] for row in cells)])
    records, rejects = read_all(Config(file=file))
    assert {key: (record.split, record.texts) for key, record in records.items()} == {
        "img/0": ("train", SampleTexts(("c",))),
        "img/1": ("train", SampleTexts((), (Question("q?"),))),
        "img/2": ("train", SampleTexts()),
    }
    assert [reject.reason for reject in rejects] == ["missing_image"]


def test_an_answer_may_be_none_or_na(images: Path, read_all) -> None:
    (images / "t.csv").write_text("image,question,answer\n0.png,how many?,none\n1.png,who?,NA\n2.png,what?,n/a\n")
    records, _ = read_all(Config(file=str(images / "t.csv")))
    assert [record.texts.questions[0].answer for record in records.values()] == ["none", "NA", "n/a"]
    records, _ = read_all(Config(file=str(images / "t.csv"), missing=["none"]))
    assert [record.texts.questions[0].answer for record in records.values()] == [None, "NA", "n/a"]


def test_structs_stand_for_texts(tmp_path: Path, picture, read_all) -> None:
    given = [{"answer": answer, "answer_confidence": "yes", "answer_id": 1} for answer in ("cat", "dog", "cat")]
    row = {
        "image": {"bytes": picture(1), "path": "1.jpg"},
        "caption": [{"raw": "a cat", "sentid": 1}, {"text": "some cat"}],
        "question": {"question": "what?"},
        "answers": given,
    }
    lists = {
        "image": {"bytes": picture(2), "path": None},
        "question": "who?",
        "answers": {"answer": ["she", "he", "he"]},
    }
    for number, rows in enumerate(([row], [lists])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{number}.parquet")
    (first,) = read_all(Config(file=str(tmp_path / "0.parquet")))[0].values()
    (second,) = read_all(Config(file=str(tmp_path / "1.parquet")))[0].values()
    assert first.texts == SampleTexts(("a cat", "some cat"), (Question("what?", "cat", ("cat", "dog", "cat")),))
    assert second.texts.questions == (Question("who?", "he", ("she", "he", "he")),)
    pyarrow.parquet.write_table(
        pyarrow.table({"image": [picture(3)], "caption": [{"de": "Katze"}]}), tmp_path / "2.parquet"
    )
    _, (reject,) = read_all(Config(file=str(tmp_path / "2.parquet")))
    assert reject.detail == "caption is a struct of de, none of answer, caption, question, raw, text; flatten it"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "image;caption\n0.png;a cat, a dog\n1.png;x\n"),
        ("t.csv", "image\tcaption\n0.png\ta cat, a dog\n1.png\tx\n"),
        ("t.csv", '"image"|"caption"\n0.png|a cat, a dog\n1.png|x\n'),
        ("t.csv", "sep=;\nimage;caption\n0.png;a cat, a dog\n1.png;x\n"),
        ("t.tsv", 'image,caption\n0.png,"a cat, a dog"\n1.png,x\n'),
        ("t.txt", "image | caption\n0.png | a cat, a dog\n1.png | x\n"),
        ("t.csv", 'image,caption\r0.png,"a cat, a dog"\r1.png,x\r'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiters_and_encodings_are_recognised(images: Path, read_all, name: str, text: str, encoding: str) -> None:
    (images / name).write_bytes(text.encode(encoding))
    records, rejects = read_all(Config(file=str(images / name)))
    assert rejects == []
    assert {key: record.texts.captions for key, record in records.items()} == {"0": ("a cat, a dog",), "1": ("x",)}


def test_a_delimiter_is_recognised_without_a_header(images: Path, read_all) -> None:
    (images / "t.csv").write_text("0.png;a cat, a dog\n")
    records, _ = read_all(Config(file=str(images / "t.csv"), header=["image", "caption"]))
    assert records["0"].texts.captions == ("a cat, a dog",)


def test_a_delimiter_is_named(images: Path, read_all) -> None:
    for name, mark in (("\\t", "\t"), ("\t", "\t"), ("||", "||"), (";", ";")):
        (images / "t.csv").write_text(f"image{mark}caption\n0.png{mark}a, b\n")
        records, _ = read_all(Config(file=str(images / "t.csv"), delimiter=name))
        assert records["0"].texts.captions == ("a, b",)
    with pytest.raises(ConfigError, match="cannot separate cells; name a comma"):
        parse_config(Config, {"file": "t.csv", "delimiter": '"'})


def test_an_encoding_is_named(images: Path, read_all) -> None:
    (images / "t.csv").write_bytes("image,caption\n0.png,Größe\n1.png,x\n".encode("cp1252"))
    _, (reject,) = read_all(Config(file=str(images / "t.csv")))
    assert (reject.key, reject.reason) == ("t.csv:2", FaultReason.BAD_UTF8)
    assert "source.encoding" in reject.detail
    records, rejects = read_all(Config(file=str(images / "t.csv"), encoding="cp1252"))
    assert (records["0"].texts.captions, rejects) == (("Größe",), [])
    (images / "t.jsonl").write_text('{"image": "0.png", "caption": "Größe"}\n', encoding="cp1252")
    records, _ = read_all(Config(file=str(images / "t.jsonl"), encoding="cp1252"))
    assert records["0"].texts.captions == ("Größe",)
    with pytest.raises(ConfigError, match="'klingon' is no encoding that Python knows; name one as utf-8 or cp1252"):
        parse_config(Config, {"file": "t.csv", "encoding": "klingon"})


def test_rows_stay_rows(images: Path, read_all) -> None:
    (images / "t.csv").write_text(
        'image,caption\n0.png,"half a board\n1.png,a cat\n1.png,it is 5"\n2.png,"two\nlines"\n1.png,a,b\n1.png,"x\n'
    )
    records, rejects = read_all(Config(file=str(images / "t.csv")))
    assert {key: record.texts.captions for key, record in records.items()} == {
        "1": ("a cat", 'it is 5"'),
        "2": ("two\nlines",),
    }
    assert [(reject.key, reject.reason) for reject in rejects] == [
        (f"t.csv:{number}", FaultReason.BAD_SCHEMA) for number in (2, 7, 8)
    ]
    assert rejects[0].detail == "a quotation mark closes only in another row"


def test_jsonl_in_utf16_and_with_zero_bytes(images: Path, read_all) -> None:
    (images / "t.jsonl").write_text('{"image": "0.png", "caption": "ä\\r"}\r\n', encoding="utf-16")
    records, rejects = read_all(Config(file=str(images / "t.jsonl")))
    assert (records["0"].texts.captions, rejects) == (("ä",), [])
    (images / "t.jsonl").write_bytes(b'{"image": "0.png", "caption": "a"}\n\0\0\0\n')
    records, rejects = read_all(Config(file=str(images / "t.jsonl")))
    assert (len(records), [reject.reason for reject in rejects]) == (1, [FaultReason.BAD_UTF8])


def test_a_group_is_kept_and_is_one(images: Path, read_all) -> None:
    (images / "t.csv").write_text("image,caption,scene\n0.png,a,7\n1.png,b,\n0.png,c,8\n")
    records, rejects = read_all(Config(file=str(images / "t.csv"), group="scene"))
    assert {key: record.extra for key, record in records.items()} == {"0": {"group": "7"}, "1": None}
    assert [(reject.key, reject.reason) for reject in rejects] == [("t.csv:4", FaultReason.BAD_SCHEMA)]


def test_a_home_folder(images: Path, read_all, monkeypatch) -> None:
    (images / "t.csv").write_text("image,caption\n0.png,a\n")
    monkeypatch.setenv("HOME", str(images))
    assert list(read_all(Config(file="~/t.csv", images="~/img"))[0]) == ["0"]
    assert list(read_all(Config(file="~/t.csv", images="img"))[0]) == ["0"]


def test_what_is_no_table_says_what_to_do(images: Path) -> None:
    for suffix in ("xlsx", "XLS", "ods"):
        (images / f"t.{suffix}").write_bytes(b"PK")
        with pytest.raises(DataError, match=r"is a spreadsheet; save its sheet as CSV \(UTF-8\)"):
            Config(file=str(images / f"t.{suffix}")).read()
    (images / "renamed.csv").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(DataError, match="is no text but an archive, a spreadsheet"):
        Config(file=str(images / "renamed.csv")).read()
    os.mkfifo(images / "pipe.csv")
    with pytest.raises(DataError, match="is no file"):
        Config(file=str(images / "pipe.csv")).read()
    (images / "t.csv").write_text("picture;words\n0.png;a\n")
    with pytest.raises(DataError, match=r"its columns are 'picture', 'words': set source\.image to one of them"):
        Config(file=str(images / "t.csv")).read()
    for nothing, says in (("", "is empty"), ("\n0.png,a\n", "begins with an empty line")):
        (images / "t.csv").write_text(nothing)
        with pytest.raises(DataError, match=rf"t\.csv {says}; its first line names the columns"):
            Config(file=str(images / "t.csv")).read()
    (images / "t.csv").write_text("picture words\n0.png a\n")
    with pytest.raises(DataError, match=r"separated by ',' \(source\.delimiter\)"):
        Config(file=str(images / "t.csv")).read()
    (images / "t.csv").write_text("image,caption,caption\n0.png,a,b\n")
    with pytest.raises(DataError, match=r"several columns 'caption' \(source\.captions\); rename all but one"):
        Config(file=str(images / "t.csv")).read()
