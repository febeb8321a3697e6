"""Rows of values (``vlmodel/media/row.py``) from the cells of a table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pipelines.data.tars.errors import FaultReason, SampleError, medium_reason

ROW_EXTENSION = "json"
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
"""As JSON writes one: "007" stays a text."""


def row_to_json(values: Mapping[str, Any]) -> str:
    """Return the JSON of a row; None is a missing value. Texts that are written as numbers or truth values become
    these, as all cells of a CSV are texts; what is neither number nor truth value nor text, such as a date, its text.

    Raises:
        SampleError: a value that is a list, a struct or bytes, or no finite number.
    """
    row = {column: _value_of_cell(column, cell) for column, cell in values.items()}
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        infinite = next(column for column, value in row.items() if value in (float("inf"), float("-inf")))
        raise SampleError(medium_reason("not_finite", "row"), f"{infinite} = {row[infinite]}") from None


def _value_of_cell(column: str, cell: Any) -> float | str | bool | None:
    if isinstance(cell, str):
        cell = cell.strip()
        known = _NUMBER.fullmatch(cell) or cell.lower() in ("true", "false")
        return json.loads(cell.lower()) if known else cell
    if isinstance(cell, Decimal):
        return float(cell)
    if isinstance(cell, list | Mapping | bytes):
        kind = "a struct" if isinstance(cell, Mapping) else "a list" if isinstance(cell, list) else "bytes"
        raise SampleError(FaultReason.BAD_SCHEMA, f"{column} is {kind}; a value of a row is a number or a text")
    return cell if cell is None or isinstance(cell, bool | int | float) else str(cell)
