"""The medium ``series``: what a valid file says, and how each broken one is refused.

Claims: ``.npy`` of every numeric type and memory order, ``.csv`` with and without names of columns, windows line ends
and a byte order mark are the same numbers; objects are never unpickled; a header that claims more than the file has is
refused before memory is taken; each defect has its reason.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest

from vlmodel.media.base import CheckLimits, MediumError
from vlmodel.media.series import MEDIUM, decode_series

X = np.array([[1.0, -2.5], [3.0, 0.25], [5.0, 1e6]])
LIMITS = CheckLimits()


def saved(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        saved(X),
        saved(X, (2, 0)),
        saved(X.astype(np.float32)),
        saved(X.astype(">f4")),
        saved(np.asfortranarray(X)),
        b"1,-2.5\n3,.25\n5,1e6\n",
        b"left,right\n1,-2.5\n3,.25\n5,1e6",
        b"left;right\n1;-2.5\n3;.25\n5;1e6",
        b"left;right\n1;-2,5\n3,0;0,25\n5;1e6",
        b"1\t-2.5\n3\t.25\n5\t1e6",
        b"id,left,right\n0_7,1,-2.5\n0_7,3,.25\n0_8,5,1e6",
        b'"left","right"\n"1","-2.5"\n"3",".25"\n"5","1e6"',
        b"\xef\xbb\xbfleft,right\r\n1,-2.5\r\n\r\n3, 0.25\r\n5,1000000\r\n",
    ],
)
def test_equal_numbers_of_every_way_to_write_them(data: bytes) -> None:
    x_TC = decode_series(data, max_values=6)
    assert x_TC.dtype == np.float32
    assert x_TC.flags.c_contiguous
    np.testing.assert_array_equal(x_TC, X.astype(np.float32))
    facts = MEDIUM.check_file(data, LIMITS)
    assert list(facts) == list(MEDIUM.columns)
    assert (facts["length"], facts["channels"]) == (3, 2)
    assert MEDIUM.check_file(data, CheckLimits(verify="header")) == facts


def test_one_dimension_is_one_channel() -> None:
    assert decode_series(saved(np.arange(4, dtype=np.int16)), 4).tolist() == [[0], [1], [2], [3]]
    assert decode_series(saved(np.array([True, False])), 4).tolist() == [[1], [0]]
    assert decode_series(b"7\n8", 4).tolist() == [[7], [8]]


def _claiming(shape: tuple[int, ...]) -> bytes:
    """A file of a few bytes whose header claims an array of this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(16)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("the object was unpickled",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"left,right\n", "empty"),
        (saved(np.zeros((0, 3))), "empty"),
        (saved(np.zeros((3, 0))), "empty"),
        (saved(X)[:-1], "truncated"),
        (_claiming((2**20, 8)), "truncated"),
        (_claiming((2**40, 2**40)), "too_large"),
        (_claiming((-1, 3)), "empty"),
        (saved(X)[:20], "undecodable"),
        (saved(X, (3, 0)), "undecodable"),
        (saved(np.array(["a", "b"])), "undecodable"),
        (saved(X.astype(complex)), "undecodable"),
        (saved(np.zeros(2, [("a", "f4")])), "undecodable"),
        (b"\x93NUMPY" + struct.pack("<BBH", 1, 0, 30) + b"__import__('os').getcwd()     ", "undecodable"),
        (b"PK\x03\x04" + bytes(40), "undecodable"),
        (b"\xff\xd8\xff\xe0", "undecodable"),
        (b"1,2\n3,four\n", "wrong_column"),
        (b"a,b\n1,2\n3,four\n", "wrong_column"),
        (b"1,2\n3,\n", "wrong_column"),
        (b"1,2\n3,1_000\n", "wrong_column"),
        (b"1,2\n3\n", "wrong_shape"),
        (saved(np.zeros((2, 2, 2))), "wrong_shape"),
        (saved(np.array(3.0)), "wrong_shape"),
        (b"1,2\nnan,4\n", "not_finite"),
        (b"1,2\n3,1e39\n", "not_finite"),
        (saved(np.array([[1.0, np.inf]])), "not_finite"),
        (saved(np.array([[1e300]])), "not_finite"),
    ],
)
def test_defects(data: bytes, reason: str) -> None:
    with pytest.raises(MediumError) as caught:
        MEDIUM.check_file(data, LIMITS)
    assert caught.value.reason == reason
    assert str(caught.value)


def test_columns_by_name() -> None:
    table = b"id,left,middle,right\nx,1,2,3\nx,4,5,6\n"
    assert decode_series(table, 99, ["right", "left"]).tolist() == [[3, 1], [6, 4]]
    for columns, message in (
        (["up"], "column 'up' is there 0 times: id, left, middle, right"),
        (["id"], "column 'id' has 'x' in line 1, which is no number"),
    ):
        with pytest.raises(MediumError, match=message) as caught:
            decode_series(table, 99, columns)
        assert caught.value.reason == "wrong_column"
    for unnamed in (b"1,2\n3,4", saved(X)):
        with pytest.raises(MediumError) as caught:
            decode_series(unnamed, 99, ["left"])
        assert caught.value.reason == "wrong_column"


def test_objects_are_not_unpickled() -> None:
    file = io.BytesIO()
    np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(MediumError, match="integers, floats or booleans"):
        MEDIUM.check_file(file.getvalue(), LIMITS)


def test_limits() -> None:
    with pytest.raises(MediumError, match="3 time steps x 2 channels = 6 numbers; max_values allows 5"):
        MEDIUM.check_file(saved(X), CheckLimits(max_values=5))
    with pytest.raises(MediumError, match="max_values allows 5"):
        MEDIUM.check_file(b"1,2\n3,4\n5,6", CheckLimits(max_values=5))
    with pytest.raises(MediumError, match=r"a series of \d+ bytes; max_bytes allows 100"):
        MEDIUM.check_file(saved(X), CheckLimits(max_bytes=100))


def test_the_first_number_that_is_not_finite_is_named() -> None:
    bad = X.copy()
    bad[2, 1] = np.nan
    with pytest.raises(MediumError, match="time step 2, channel 1"):
        MEDIUM.check_file(saved(bad), LIMITS)
    assert MEDIUM.check_file(saved(bad), CheckLimits(verify="header"))["length"] == 3
