"""The medium ``row``: one JSON object of plain values."""

from __future__ import annotations

import pytest

from pipelines.data.tars.inputs import describe_known_extensions, input_of_extension, member_extension
from vlmodel.media.base import CheckLimits, MediumError
from vlmodel.media.row import MEDIUM, decode_json_row


def test_values_of_every_kind() -> None:
    data = '\ufeff{"age": 41, "height": 1.8, "colour": "röt", "ill": true, "weight": null}'.encode()
    assert decode_json_row(data, 5) == {"age": 41, "height": 1.8, "colour": "röt", "ill": True, "weight": None}
    assert MEDIUM.check_file(data, CheckLimits()) == {"columns": 5, "missing": 1}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"{}", "empty"),
        (b"{", "undecodable"),
        (b'{"a": "\xff"}', "undecodable"),
        (b"[" * 100_000, "undecodable"),
        (b"[1]", "wrong_shape"),
        (b'{"a": [1]}', "wrong_shape"),
        (b'{"a": 1, "a": 2}', "wrong_shape"),
        (b'{"a": NaN}', "not_finite"),
        (b'{"a": 1e999}', "not_finite"),
        (b'{"a": 1' + b"0" * 400 + b"}", "not_finite"),
        (b'{"a": 1, "b": 2, "c": 3}', "too_large"),
    ],
)
def test_what_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(MediumError) as caught:
        MEDIUM.check_file(data, CheckLimits(max_values=2))
    assert caught.value.reason == reason


def test_a_row_has_a_member_of_its_own() -> None:
    assert input_of_extension("json") == ("text", "text")
    assert input_of_extension("row.json") == ("row", "row")
    assert input_of_extension("patient.json") == ("patient", "row")
    for name in ("row", "patient"):
        assert input_of_extension(member_extension(name, "json")) == (name, "row")
        assert f".{name}.json" in describe_known_extensions(name)
