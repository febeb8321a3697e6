"""Corrections become samples: the last word of each sender, the most common one of all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.importers.feedback import Config
from pipelines.data.tars.errors import FaultReason
from pipelines.errors import DataError
from pipelines.records.corrections import CorrectionSpool
from vlmodel.sample import Question

DAY = 86_400 * 10**9


def spool(folder: Path) -> CorrectionSpool:
    ticks = iter(range(DAY, 2 * DAY, 10**9))
    return CorrectionSpool(folder, 10**6, lambda: next(ticks))


def test_the_most_common_of_the_last_words(tmp_path: Path, picture: Callable[..., bytes], read_all: Any) -> None:
    mine = spool(tmp_path)
    for sender, answer in (("a", "red"), ("b", "blue"), ("c", "blue"), ("a", "green"), ("d", "green"), ("e", "blue")):
        mine.add(picture(1), sender=sender, question="what colour?", answer=answer)
    mine.add(picture(1), sender="a", question="is it?", answer="yes")
    mine.add(picture(2, "JPEG"), sender="a", caption="a dot")
    mine.add(picture(2, "JPEG"), sender="b", caption="a dot")
    assert len(list(tmp_path.glob("1970-01-02/images/*"))) == 2
    records, rejects = read_all(Config(folder=str(tmp_path / "1970-01-02")))
    assert rejects == []
    first, second = sorted(records.values(), key=lambda record: record.inputs["image"][1], reverse=True)
    assert (first.inputs["image"][0], first.inputs["image"][1]) == (picture(1), "png")
    assert first.texts.questions == (
        Question("what colour?", "blue", ("green", "blue", "blue", "green", "blue")),
        Question("is it?", "yes"),
    )
    assert (second.inputs["image"][1], second.texts.captions) == ("jpg", ("a dot",))
    assert first.extra == {"senders": ["a", "b", "c", "d", "e"]}

    records, rejects = read_all(Config(folder=str(tmp_path / "1970-01-02"), senders=3))
    assert [record.texts.questions[0].answer for record in records.values()] == ["blue"]
    assert [reject.reason for reject in rejects] == [FaultReason.MISSING_TEXT]


def test_what_is_damaged_costs_only_itself(tmp_path: Path, picture: Callable[..., bytes], read_all: Any) -> None:
    mine = spool(tmp_path)
    for number in range(3):
        mine.add(picture(number), sender="a", caption=f"dot {number}")
    day = tmp_path / "1970-01-02"
    first, second, _ = sorted((day / "corrections").iterdir())
    first.write_text(first.read_text()[:-5])
    second.write_text(second.read_text().replace(".png", "/../../x.png"))
    (day / "corrections" / ".0.json.half").write_bytes(b"{")
    records, rejects = read_all(Config(folder=str(day)))
    assert [record.texts.captions for record in records.values()] == [("dot 2",)]
    assert [reject.reason for reject in rejects] == [FaultReason.BAD_SCHEMA] * 2


def test_texts_alone_need_no_images(tmp_path: Path, picture: Callable[..., bytes], read_all: Any) -> None:
    spool(tmp_path).add(picture(1), sender="a", caption="a dot")
    day = tmp_path / "1970-01-02"
    for image in (day / "images").iterdir():
        image.unlink()
    config = Config(folder=str(day), inputs="text")
    records, rejects = read_all(config)
    (record,) = records.values()
    assert (record.inputs, record.texts.captions, rejects) == ({}, ("a dot",), [])
    assert config.fingerprint()


def test_a_folder_of_several_days_is_refused(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    spool(tmp_path).add(picture(1), sender="a", caption="a dot")
    with pytest.raises(DataError, match="one day"):
        Config(folder=str(tmp_path)).read()


def test_the_same_day_is_known_by_its_fingerprint(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    mine = spool(tmp_path)
    mine.add(picture(1), sender="a", caption="a dot")
    config = Config(folder=str(tmp_path / "1970-01-02"))
    before = config.fingerprint()
    assert config.fingerprint() == before
    mine.add(picture(1), sender="b", caption="a dot")
    assert config.fingerprint() != before
