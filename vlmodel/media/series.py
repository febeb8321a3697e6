"""The medium ``series``: numbers over time, from NumPy's ``.npy`` files or from ``.csv``."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy

from vlmodel.media._delimited import NamedNumbers, parse_csv_numbers
from vlmodel.media.base import CheckLimits, DisplayCopy, Fact, Medium, MediumError, check_file_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHOWN_VALUES = 200_000
_MAGIC = b"\x93NUMPY"
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class SeriesMedium(Medium):
    """The medium of series with T time steps of C numbers each.

    A ``.npy`` file holds an array (T, C) or (T,) of integers, floats or booleans. A ``.csv`` file has a line for each
    time step, with commas, semicolons or tabs between its numbers; a first line may name the columns.
    """

    name: ClassVar[str] = "series"
    extensions: ClassVar[tuple[str, ...]] = ("npy", "csv")
    columns: ClassVar[Mapping[str, str]] = {"format": "string", "length": "int32", "channels": "int32"}

    def check_file(self, data: bytes, limits: CheckLimits) -> dict[str, Fact]:
        check_file_size(data, limits, self.name)
        is_npy = data.startswith(_MAGIC)
        if is_npy and limits.verify == "header":
            length, channels = _read_npy_header(data, limits.max_values).shape
        else:
            length, channels = decode_series(data, limits.max_values).shape
        return {"format": "npy" if is_npy else "csv", "length": length, "channels": channels}

    def display_copy(self, data: bytes) -> DisplayCopy | None:
        """Write the named columns as CSV with commas; None for more than 200,000 numbers."""
        x_TC, names = _decode_named_columns(data, CheckLimits().max_values)
        if x_TC.size > _SHOWN_VALUES:
            return None
        lines = [",".join(name.replace(",", " ") for name in names)] if names else []
        lines += [",".join(map(str, row)) for row in x_TC.tolist()]
        return DisplayCopy("\n".join(lines).encode() + b"\n", "text/csv")


def decode_series(data: bytes, max_values: int, columns: Sequence[str] = ()) -> NDArray[np.float32]:
    """Decode a series to an array (T, C) of finite numbers, at least one.

    Nothing is unpickled, and no more memory is taken than the file's size and ``max_values`` allow.

    Args:
        columns: names of the columns of a CSV file that are read, in this order; all columns of numbers where empty.

    Raises:
        MediumError: truncated; undecodable; wrong_column: one is missing, or has a cell that is no number; wrong_shape:
            not one or two dimensions, or lines of different lengths;
            too_large: more than ``max_values`` numbers; empty: no number; not_finite: a NaN, an infinity, or a number
            that float32 cannot hold.
    """
    return _decode_named_columns(data, max_values, columns).x_TC


def _decode_named_columns(data: bytes, max_values: int, columns: Sequence[str] = ()) -> NamedNumbers:
    names: list[str] = []
    if not data.startswith(_MAGIC):
        x_TC, names = parse_csv_numbers(data, columns, partial(_check_value_count, max_values=max_values))
    elif columns:
        raise MediumError(
            "wrong_column", f"the columns of a .npy file have no names; {', '.join(columns)} are asked for"
        )
    else:
        x_TC = _decode_npy(data, max_values)
    finite_TC = np.isfinite(x_TC)
    if not finite_TC.all():
        step, channel = np.argwhere(~finite_TC)[0]
        raise MediumError("not_finite", f"the number at time step {step}, channel {channel} is not finite in float32")
    return NamedNumbers(x_TC, names)


class _NpyHeader(NamedTuple):
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    offset: int


def _read_npy_header(data: bytes, max_values: int) -> _NpyHeader:
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the format; 1.0 and 2.0 are read")
        shape, fortran_order, dtype = _HEADERS[version](file)
    except Exception as error:  # the reader raises anything on broken bytes
        raise MediumError("undecodable", f"no .npy file that is read here: {error}") from error
    if dtype.hasobject or dtype.kind not in "biuf":
        raise MediumError("undecodable", f"an array of {dtype}; a series has integers, floats or booleans")
    if len(shape) not in (1, 2):
        raise MediumError("wrong_shape", f"an array of shape {shape}; a series is (time steps, channels)")
    length, channels = (*shape, 1)[:2]
    _check_value_count(length, channels, max_values)
    missing = file.tell() + length * channels * dtype.itemsize - len(data)
    if missing > 0:
        raise MediumError("truncated", f"{missing} bytes of an array of shape {shape} and {dtype} are missing")
    return _NpyHeader((length, channels), dtype, "F" if fortran_order else "C", file.tell())


def _decode_npy(data: bytes, max_values: int) -> NDArray[np.float32]:
    header = _read_npy_header(data, max_values)
    flat = np.frombuffer(data, header.dtype, math.prod(header.shape), header.offset)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(flat.reshape(header.shape, order=header.order), dtype=np.float32)


def _check_value_count(length: int, channels: int, max_values: int) -> None:
    if length < 1 or channels < 1:
        raise MediumError("empty", f"a series of {length} time steps and {channels} channels has no number")
    if length * channels > max_values:
        size = f"{length} time steps x {channels} channels = {length * channels} numbers"
        raise MediumError("too_large", f"{size}; max_values allows {max_values}")


MEDIUM = SeriesMedium()
