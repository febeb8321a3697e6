"""The medium ``row``: structured values by the names of their columns, as a JSON object of one level
(``KEY.row.json``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

from vlmodel.media.base import CheckLimits, DisplayCopy, Fact, Medium, MediumError, check_file_size

Row = Mapping[str, float | str | bool | None]
"""Numbers, texts, truth values, and None for what is missing, by the names of their columns."""


class RowMedium(Medium):
    """A JSON object whose values are numbers, texts, true, false, or null for what is missing.

    Its member has a name of its own (``KEY.row.json``, ``KEY.patient.json``), as ``KEY.json`` is the sample's texts.
    """

    name: ClassVar[str] = "row"
    extensions: ClassVar[tuple[str, ...]] = ("json",)
    columns: ClassVar[Mapping[str, str]] = {"columns": "int32", "missing": "int32"}
    """How many columns it has, and how many of these are null."""

    def check_file(self, data: bytes, limits: CheckLimits) -> dict[str, Fact]:
        check_file_size(data, limits, self.name)
        row = decode_json_row(data, limits.max_values)
        return {"columns": len(row), "missing": sum(value is None for value in row.values())}

    def display_copy(self, data: bytes) -> DisplayCopy:
        """Return all columns of the row, as JSON."""
        row = decode_json_row(data, CheckLimits().max_values)
        return DisplayCopy(json.dumps(row, ensure_ascii=False).encode(), "application/json")


def decode_json_row(data: bytes, max_values: int) -> Row:
    """Parse a JSON object as a row of a table.

    Raises:
        MediumError: undecodable: no JSON in UTF-8; wrong_shape: no object, or a value that is a list or an object;
            not_finite: a number that is none of JSON, or too large; empty: no column; too_large: too many of them.
    """
    try:
        row = json.loads(
            data.decode("utf-8-sig"),
            parse_constant=_refuse_nan_and_infinity,
            object_pairs_hook=_refuse_repeated_columns,
        )
    except MediumError:
        raise
    except UnicodeDecodeError as error:
        raise MediumError("undecodable", f"no text in UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError) as error:  # ValueError also for integers of thousands of digits
        raise MediumError("undecodable", f"no JSON: {error}") from None
    if not isinstance(row, dict):
        raise MediumError("wrong_shape", f"a {type(row).__name__}; a row is an object of columns and values")
    if not row:
        raise MediumError("empty", "a row without columns")
    if len(row) > max_values:
        raise MediumError("too_large", f"{len(row)} columns; max_values allows {max_values}")
    for column, value in row.items():
        if isinstance(value, list | dict):
            raise MediumError("wrong_shape", f"column {column!r} is a {type(value).__name__}; give one value")
        if isinstance(value, int | float) and not _is_finite(value):
            raise MediumError("not_finite", f"column {column!r} is {value!r:.40}, which is no finite number")
    return row


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _refuse_nan_and_infinity(name: str) -> NoReturn:
    raise MediumError("not_finite", f"{name} is no number of JSON; write null for what is missing")


def _refuse_repeated_columns(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise MediumError("wrong_shape", "a column is given twice")
    return row


MEDIUM = RowMedium()
