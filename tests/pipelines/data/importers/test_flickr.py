from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipelines.data.importers.flickr import Config
from pipelines.data.importing.run import import_data
from pipelines.data.tars.errors import FaultReason
from pipelines.errors import DataError


@pytest.fixture
def flickr(tmp_path: Path, picture) -> Path:
    """Three images with captions; one in each list but ``c``, which is in none."""
    (tmp_path / "Flicker8k_Dataset").mkdir()
    for number, name in enumerate("abc"):
        (tmp_path / "Flicker8k_Dataset" / f"{name}.jpg").write_bytes(picture(number, "JPEG"))
    text = tmp_path / "Flickr8k_text"
    text.mkdir()
    (text / "Flickr8k.token.txt").write_text(
        'a.jpg#0\tA "dog", running .\na.jpg#1\tDer Hund läuft .\nb.jpg#0\tA cat .\nc.jpg#0\tA cow .\n', encoding="utf-8"
    )
    (text / "Flickr_8k.trainImages.txt").write_text("a.jpg\n")
    (text / "Flickr_8k.devImages.txt").write_text("b.jpg\n\n")
    return tmp_path


def test_token_file_and_lists(flickr: Path, picture, read_all) -> None:
    records, rejects = read_all(Config(folder=str(flickr)))
    assert rejects == []
    assert {key: record.split for key, record in records.items()} == {"a": "train", "b": "val"}
    assert records["a"].inputs["image"][0] == picture(0, "JPEG")
    assert records["a"].texts.captions == ('A "dog", running .', "Der Hund läuft .")


def test_without_lists_all_is_train(flickr: Path, read_all) -> None:
    for file in flickr.rglob("*Images.txt"):
        file.unlink()
    records, _ = read_all(Config(folder=str(flickr)))
    assert {record.split for record in records.values()} == {"train"}
    assert set(records) == {"a", "b", "c"}


def test_captions_alone_need_no_images(flickr: Path, read_all) -> None:
    for file in flickr.rglob("*.jpg"):
        file.unlink()
    config = Config(folder=str(flickr), inputs="text")
    records, rejects = read_all(config)
    assert rejects == []
    assert {key: (record.inputs, record.texts.captions) for key, record in records.items()} == {
        "a": ({}, ('A "dog", running .', "Der Hund läuft .")),
        "b": ({}, ("A cat .",)),
    }
    before = config.fingerprint()
    (flickr / "new.jpg").write_bytes(b"no part of the source")
    assert config.fingerprint() == before


def test_images_alone_need_no_captions(flickr: Path, picture, read_all) -> None:
    (flickr / "Flicker8k_Dataset" / "d.jpg").write_bytes(picture(3, "JPEG"))
    with (flickr / "Flickr8k_text" / "Flickr_8k.devImages.txt").open("a") as file:
        file.write("d.jpg\n")
    records, rejects = read_all(Config(folder=str(flickr), inputs="image"))
    assert rejects == []
    assert {key: record.inputs["image"][0] for key, record in records.items()} == {
        key: picture(number, "JPEG") for key, number in (("a", 0), ("b", 1), ("d", 3))
    }


def test_csv_and_lists_without_extension(flickr: Path, read_all) -> None:
    (flickr / "Flickr8k_text" / "Flickr8k.token.txt").unlink()
    (flickr / "captions.txt").write_text('image,caption\na.jpg,"A dog, a ""good"" one ."\na.jpg,Dogs .\nb.jpg,Cat .\n')
    (flickr / "Flickr8k_text" / "Flickr_8k.trainImages.txt").write_text("a\n")
    records, rejects = read_all(Config(folder=str(flickr)))
    assert rejects == []
    assert records["a"].texts.captions == ('A dog, a "good" one .', "Dogs .")
    assert records["b"].split == "val"


@pytest.mark.parametrize("delimiter", ",|;\t")
def test_a_caption_that_holds_the_delimiter_is_whole(flickr: Path, read_all, delimiter: str) -> None:
    rows = [["image", "caption"], ["a.jpg", "A dog ", " running ", " fast"], ["b.jpg", "A cat"], ["c.jpg"]]
    (flickr / "captions.csv").write_text("\n".join(map(delimiter.join, rows)) + "\n")
    records, rejects = read_all(Config(folder=str(flickr), captions="captions.csv"))
    assert records["a"].texts.captions == (f"A dog {delimiter} running {delimiter} fast",)
    assert [(reject.key, reject.reason) for reject in rejects] == [("captions.csv:4", FaultReason.BAD_SCHEMA)]


def test_one_image_in_several_spellings_is_one_sample(flickr: Path, read_all) -> None:
    (flickr / "Flicker8k_Dataset" / "e\u0301.jpg").write_bytes((flickr / "Flicker8k_Dataset" / "a.jpg").read_bytes())
    (flickr / "captions.csv").write_text(
        "image,caption\na.jpg,one\n./a.jpg,two\nFlicker8k_Dataset/a.jpg,three\n\u00e9.jpg,x\ne\u0301.jpg,y\n"
    )
    (flickr / "all.txt").write_text("a.jpg\n./a.jpg\nFlicker8k_Dataset//a.jpg\ne\u0301.jpg\n")
    config = Config(folder=str(flickr), captions="captions.csv", train="all.txt", val="")
    (flickr / "Flickr8k_text" / "Flickr_8k.devImages.txt").unlink()
    summary = import_data(config, flickr / "out", progress=False)
    assert summary.splits["train"].samples == 2
    assert summary.splits["train"].captions == 4
    assert summary.rejected == {"duplicate_key": 1}


def test_a_tab_in_a_caption_of_a_token_file(flickr: Path, read_all) -> None:
    with (flickr / "Flickr8k_text" / "Flickr8k.token.txt").open("a") as file:
        file.write("a.jpg#2\tone\ttwo\n")
    records, _ = read_all(Config(folder=str(flickr)))
    assert records["a"].texts.captions[-1] == "one\ttwo"


def test_a_cell_too_many_behind_other_columns(flickr: Path, read_all) -> None:
    (flickr / "captions.csv").write_text("caption,image\nA dog, running,a.jpg\nA cat,b.jpg\n")
    records, rejects = read_all(Config(folder=str(flickr), captions="captions.csv"))
    assert records["b"].texts.captions == ("A cat",)
    assert (rejects[0].key, rejects[0].reason) == ("captions.csv:2", FaultReason.BAD_SCHEMA)


def test_a_quotation_mark_that_never_closes(flickr: Path, read_all) -> None:
    (flickr / "captions.csv").write_text('image,caption\na.jpg,"half a board\nb.jpg,A cat\na.jpg,it is 5"\n')
    records, rejects = read_all(Config(folder=str(flickr), captions="captions.csv"))
    assert {key: record.texts.captions for key, record in records.items()} == {"a": ('it is 5"',), "b": ("A cat",)}
    assert [(reject.key, reject.reason) for reject in rejects] == [("captions.csv:2", FaultReason.BAD_SCHEMA)]


def test_what_is_in_no_list_is_counted(flickr: Path) -> None:
    reading = Config(folder=str(flickr)).read()
    assert len(list(reading.samples)) == 2
    assert reading.count_skipped_files() == {
        "images that nothing names": 1,
        "images with captions that are in no list of a split": 1,
    }


def test_utf16_and_odd_line_ends(flickr: Path, read_all) -> None:
    (flickr / "Flickr8k_text" / "Flickr8k.token.txt").write_text("a.jpg#0\tDer Hund läuft\r\n", encoding="utf-16")
    (flickr / "Flickr8k_text" / "Flickr_8k.trainImages.txt").write_bytes(b"a.jpg\r\x1cb.jpg\r")
    (flickr / "Flickr8k_text" / "Flickr_8k.devImages.txt").unlink()
    records, rejects = read_all(Config(folder=str(flickr)))
    assert records["a"].texts.captions == ("Der Hund läuft",)
    assert len(rejects) == 1


def test_flickr30k_results(flickr: Path, read_all) -> None:
    (flickr / "results.csv").write_text(
        'image_name| comment_number| comment\na.jpg| 0| A "dog runs .\na.jpg| 1| Dogs, two .\nb.jpg| 4   A broken row\n'
    )
    records, rejects = read_all(Config(folder=str(flickr), captions="results.csv"))
    assert records["a"].texts.captions == ('A "dog runs .', "Dogs, two .")
    assert [(reject.key, reject.reason) for reject in rejects] == [
        ("results.csv:4", FaultReason.BAD_SCHEMA),
        ("b", FaultReason.MISSING_TEXT),
    ]


def test_a_bad_line_or_image_costs_only_itself(flickr: Path, read_all) -> None:
    with (flickr / "Flickr8k_text" / "Flickr8k.token.txt").open("ab") as file:
        file.write(b"a.jpg#2\tcaf\xe9\na.jpg#3\na.jpg#4\tLast .\ngone.jpg.1#0\tGone .\n")
    with (flickr / "Flickr8k_text" / "Flickr_8k.trainImages.txt").open("a") as file:
        file.write("gone.jpg.1\nlost.jpg\n../../etc/x.jpg\n")
    records, rejects = read_all(Config(folder=str(flickr)))
    assert records["a"].texts.captions[-1] == "Last ."
    assert [(reject.key, reject.reason) for reject in rejects[:2]] == [
        ("Flickr8k.token.txt:5", FaultReason.BAD_UTF8),
        ("Flickr8k.token.txt:6", FaultReason.BAD_SCHEMA),
    ]
    assert [reject.reason for reject in rejects[2:]] == [
        "undecodable_image",
        FaultReason.MISSING_TEXT,
        FaultReason.MISSING_TEXT,
    ]


def test_an_unusable_source_says_what_to_do(flickr: Path) -> None:
    with pytest.raises(DataError, match=r"source\.test = 'x\.txt'"):
        Config(folder=str(flickr), test="x.txt").read()
    (flickr / "bad.csv").write_text("picture,words\na.jpg,b\n")
    with pytest.raises(DataError, match="has no columns image and caption"):
        Config(folder=str(flickr), captions="bad.csv").read()
    (flickr / "bad.csv").write_text("")
    with pytest.raises(DataError, match="neither of a token file nor a CSV header"):
        Config(folder=str(flickr), captions="bad.csv").read()
    (flickr / "Flickr8k_text" / "Flickr8k.token.txt").unlink()
    with pytest.raises(DataError, match=r"holds none of .*name the caption file by source\.captions"):
        Config(folder=str(flickr)).read()


def test_the_subset(shared_data, read_all) -> None:
    root = shared_data("flickr8k-subset")
    records, rejects = read_all(Config(folder=str(root)))
    assert rejects == []
    assert Counter(record.split for record in records.values()) == {"train": 1250, "val": 450}
    assert sum(len(record.texts.captions) for record in records.values()) == 8500
    dogs = records["1001773457_577c3a7d70"]
    assert dogs.texts.captions[0] == "A black dog and a spotted dog are fighting"
    assert (dogs.inputs["image"][1], dogs.inputs["image"][0][:3], dogs.inputs["image"][0][-2:]) == (
        "jpg",
        b"\xff\xd8\xff",
        b"\xff\xd9",
    )
