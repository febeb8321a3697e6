from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.data.importers.folder import Config
from pipelines.data.importing.run import REJECTS, import_data
from pipelines.errors import DataError
from vlmodel.config import ConfigError, parse_config
from vlmodel.sample import SampleTexts


def test_every_image_is_a_sample(tmp_path: Path, picture, read_all, write_tar) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "b.PNG").write_bytes(picture(0))
    (tmp_path / "deep" / "er" / "a.jpg").write_bytes(picture(1, "JPEG"))
    (tmp_path / "deep" / "notes.txt").write_text("no image")
    write_tar(tmp_path / "more.tar", {"c.webp": picture(2, "WEBP"), "c.json": b"{}"})
    config = Config(folder=str(tmp_path), split="val")
    records, rejects = read_all(config)
    assert rejects == []
    assert {key: record.inputs["image"][0] for key, record in records.items()} == {
        "b": picture(0),
        "deep/er/a": picture(1, "JPEG"),
        "c": picture(2, "WEBP"),
    }
    assert [record.inputs["image"][1] for record in records.values()] == ["png", "jpg", "webp"]
    assert {(record.split, record.texts) for record in records.values()} == {("val", SampleTexts())}
    assert config.read().total == 3

    before = config.fingerprint()
    (tmp_path / "d.gif").write_bytes(picture(3, "GIF"))
    assert config.fingerprint() != before


def test_a_tar_alone(tmp_path: Path, picture, read_all, write_tar) -> None:
    tar = write_tar(tmp_path / "photos.tar", {"x/1.jpg": picture(1, "JPEG")})
    config = Config(folder=str(tar))
    records, rejects = read_all(config)
    assert (list(records), rejects) == (["x/1"], [])
    assert config.fingerprint()


def test_an_image_that_cannot_be_read_costs_only_itself(tmp_path: Path, picture, read_all) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "link.png").symlink_to("nowhere")
    config = Config(folder=str(tmp_path))
    records, rejects = read_all(config)
    assert set(records) == {"0", "1"}
    assert [(reject.key, reject.reason) for reject in rejects] == [("link", "missing_image")]
    assert config.fingerprint() == config.fingerprint()


def test_wrong_settings_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder '.*none' does not exist"):
        Config(folder=str(tmp_path / "none")).read()
    for inputs in (["image", "text"], ["text"], ["imu"]):
        with pytest.raises(ConfigError, match=r"inputs = .*name image.*\(source\.kind=table"):
            parse_config(Config, {"folder": str(tmp_path), "inputs": inputs})


def test_one_file_under_two_names_is_one_sample(tmp_path: Path, picture) -> None:
    (tmp_path / "in" / "z").mkdir(parents=True)
    (tmp_path / "in" / "z" / "a.png").write_bytes(picture(0))
    (tmp_path / "in" / "again.png").symlink_to("z/a.png")
    (tmp_path / "in" / "notes.txt").write_text("x")
    summary = import_data(Config(folder=str(tmp_path / "in")), tmp_path / "out", progress=False)
    assert summary.splits["train"].samples == 1
    assert summary.rejected == {"duplicate_key": 1}
    assert summary.passed_over == {".txt files": 1}
    (reject,) = (tmp_path / "out" / REJECTS).read_text().splitlines()
    assert json.loads(reject)["detail"] == "its image is the very file of sample 'again' of split 'train'"


def test_a_home_folder(tmp_path: Path, picture, read_all, monkeypatch) -> None:
    (tmp_path / "0.png").write_bytes(picture(0))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(read_all(Config(folder="~"))[0]) == ["0"]


def test_a_folder_is_a_group(tmp_path: Path, picture, read_all) -> None:
    for number, name in enumerate(("a.png", "film/1.png", "film/2.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(number))
    records, _ = read_all(Config(folder=str(tmp_path), group="folder"))
    assert {key: record.extra for key, record in records.items()} == {
        "a": {"group": ""},
        "film/1": {"group": "film"},
        "film/2": {"group": "film"},
    }


def test_folders_are_classes_and_splits(tmp_path: Path, picture, read_all) -> None:
    for name in ("train/cat/1.png", "valid/dog/deep/2.png", "train/3.png", "elsewhere/cat/4.png", "5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(int(name[-5])))
    config = parse_config(Config, {"folder": str(tmp_path), "classes": "folder", "split": "folder"})
    assert config.inputs == ("image", "text")
    records, rejects = read_all(config)
    assert {key: (record.split, record.texts.label) for key, record in records.items()} == {
        "train/cat/1": ("train", "cat"),
        "valid/dog/deep/2": ("val", "deep"),
        "train/3": ("train", "train"),
    }
    assert [(reject.key, reject.reason) for reject in rejects] == [
        ("5", "bad_schema"),
        ("elsewhere/cat/4", "bad_schema"),
    ]
    records, rejects = read_all(parse_config(Config, {"folder": str(tmp_path), "classes": "folder"}))
    assert (len(records), [(reject.key, reject.reason) for reject in rejects]) == (4, [("5", "missing_text")])
    with pytest.raises(ConfigError, match="name image and text"):
        parse_config(Config, {"folder": str(tmp_path), "classes": "folder", "inputs": ["image"]})
