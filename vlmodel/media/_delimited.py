"""Parses numbers from lines of text: CSV files that programs or spreadsheets wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vlmodel.media.base import MediumError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class NamedNumbers(NamedTuple):
    """A table of numbers and the names of its columns; no names if the file has none."""

    x_TC: NDArray[np.float32]
    names: list[str]


def parse_csv_numbers(data: bytes, columns: Sequence[str], check_count: Callable[[int, int], None]) -> NamedNumbers:
    """Parse the numbers of a UTF-8 file, with or without a byte order mark.

    Cells are separated by semicolons, tabs or commas, whichever of these the first line has. Where that is no comma, a
    comma in a number is its decimal point. A first line that is not all numbers names the columns; then those columns
    whose first cell is no number (identifiers, dates) are left out.

    Args:
        columns: names of those that are read, in this order; all columns of numbers where empty.
        check_count: refuses T x C numbers, before they are parsed.

    Raises:
        MediumError: undecodable, wrong_shape: lines of different lengths; wrong_column: one is missing, or a cell of
            one is no number; or what ``check_count`` raises.
    """
    lines = [line for line in _decode_utf8(data).splitlines() if line.strip()]
    delimiter = next((mark for mark in (";", "\t") if lines and mark in lines[0]), ",")
    names: list[str] = []
    if lines and not all(map(_is_number, _split_cells(lines[0], delimiter))):
        names = [name.strip().strip('"') for name in lines.pop(0).split(delimiter)]
    width = lines[0].count(delimiter) + 1 if lines else len(names)
    for number, line in enumerate(lines, 1):
        if (count := line.count(delimiter) + 1) != width:
            raise MediumError("wrong_shape", f"line {number} of the numbers has {count} of them, the first {width}")
    places = _find_column_indices(columns, names, lines, delimiter, width)
    check_count(len(lines), len(places) if lines else 0)
    if delimiter != ",":
        lines = [line.replace(",", ".") for line in lines]
    try:
        with np.errstate(over="ignore"):
            x_TC = np.loadtxt(
                lines, np.float64, delimiter=delimiter, comments=None, ndmin=2, usecols=places, quotechar='"'
            ).astype(np.float32)
            return NamedNumbers(x_TC, [names[place] for place in places] if names else [])
    except ValueError as error:
        raise _find_cell_without_number(lines, delimiter, places, names) or MediumError(
            "undecodable", str(error)
        ) from None


def _decode_utf8(data: bytes) -> str:
    if (zero := data.find(0)) >= 0:  # valid UTF-8, but lost blocks of a disk are zeros
        raise MediumError("undecodable", f"neither a .npy file nor text: byte {zero} is zero")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MediumError("undecodable", f"neither a .npy file nor text: byte {error.start} is not UTF-8") from None


def _split_cells(line: str, delimiter: str) -> list[str]:
    cells = line.split(delimiter)
    return cells if delimiter == "," else [cell.replace(",", ".") for cell in cells]


def _find_column_indices(
    columns: Sequence[str], names: Sequence[str], lines: Sequence[str], delimiter: str, width: int
) -> list[int]:
    """Find the indices of the columns that are read."""
    if columns:
        for column in columns:
            if names.count(column) != 1:
                there = ", ".join(names) or "not named"
                raise MediumError("wrong_column", f"column {column!r} is there {names.count(column)} times: {there}")
        return [names.index(column) for column in columns]
    if not names or not lines:
        return list(range(width))
    first = _split_cells(lines[0], delimiter)
    return [place for place, cell in enumerate(first) if _is_number(cell)] or list(range(width))


def _find_cell_without_number(
    lines: Sequence[str], delimiter: str, places: Sequence[int], names: Sequence[str]
) -> MediumError | None:
    for number, line in enumerate(lines, 1):
        cells = line.split(delimiter)
        for place in places:
            if not _is_number(cells[place]):
                name = repr(names[place]) if names else place + 1
                cell = f"{cells[place].strip()!r:.40}"
                return MediumError("wrong_column", f"column {name} has {cell} in line {number}, which is no number")
    return None


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"'))
    except ValueError:
        return False
    return "_" not in cell  # which Python reads as a separator of digits
