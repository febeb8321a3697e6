from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.data.importers.files import Config
from pipelines.data.tars.sample import GROUP
from pipelines.errors import DataError
from tests.vlmodel.media_files import saved_sound
from vlmodel.config import ConfigError, parse_config

WAV = saved_sound(np.zeros(80, np.float32))


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(WAV)


def test_recordings_with_folders_as_classes(tmp_path: Path, read_all) -> None:
    write(tmp_path, "train/dog/1.wav", "test/cat/2.WAV", "notes.md")
    config = parse_config(Config, {"folder": str(tmp_path), "classes": "folder", "split": "folder"})
    assert config.inputs == ("audio", "text")
    records, rejects = read_all(config)
    assert rejects == []
    assert {key: (one.split, one.texts.label) for key, one in records.items()} == {
        "train/dog/1": ("train", "dog"), "test/cat/2": ("test", "cat"),
    }  # fmt: skip
    assert records["test/cat/2"].inputs == {"audio": (WAV, "wav")}
    contents = config.read()
    assert [contents.total, len(list(contents.samples)), contents.count_skipped_files()] == [2, 2, {"other files": 1}]


def test_names_that_say_class_and_group(tmp_path: Path, read_all) -> None:
    write(tmp_path, "7_jackson_12.wav", "0_lucas_3.wav", "other.wav")
    pattern = r"(?P<class>\d)_(?P<group>[a-z]+)_\d+\.wav"
    records, rejects = read_all(parse_config(Config, {"folder": str(tmp_path), "pattern": pattern}))
    assert {key: (one.texts.label, one.extra) for key, one in records.items()} == {
        "7_jackson_12": ("7", {GROUP: "jackson"}), "0_lucas_3": ("0", {GROUP: "lucas"}),
    }  # fmt: skip
    assert [(reject.key, reject.reason) for reject in rejects] == [("other", "missing_text")]


def test_series_without_classes_by_another_name(tmp_path: Path, read_all) -> None:
    (tmp_path / "a.csv").write_text("1,2\n3,4")
    records, _ = read_all(parse_config(Config, {"folder": str(tmp_path), "inputs": ["imu"]}))
    assert records["a"].inputs == {"imu": (b"1,2\n3,4", "csv")}


def test_wrong_settings_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file of the input 'audio': .wav, .flac"):
        parse_config(Config, {"folder": str(tmp_path)}).read()
    for settings, message in (
        ({"inputs": ["audio", "imu"]}, "name the one input"),
        ({"inputs": ["image"]}, "source.kind=folder reads images"),
        ({"pattern": "(?P<class>"}, "no regular expression"),
        ({"pattern": "(?P<speaker>a)"}, "name some of class, group, split"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_config(Config, {"folder": str(tmp_path), **settings})
