"""Reads delimited text so that a bad row does not affect the others.

A cell that begins with a quotation mark ends at the next single one (two stand for one), which only a delimiter or the
end of a line may follow; line ends inside belong to it. That is RFC 4180, and what spreadsheets and ``csv`` write. A
line that breaks this rule is a bad row by itself, and the next line begins a new one, so an unclosed mark swallows no
other rows. Between tabs, where many programs do not quote, such a mark is part of the text.
"""

from __future__ import annotations

import codecs
import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from pipelines.data.importers._files import open_regular_file
from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.errors import DataError

DELIMITERS = ",\t;|"
"""Those that are tried where none is set."""

_MAX_LETTERS = 128 << 10
"""In one cell, as ``csv`` allows by default. More is an unclosed mark, or no text."""
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SURROGATES = "importers.surrogates"
codecs.register_error(_SURROGATES, lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]


def open_text_file(file: Path, encoding: str = "", newline: str = "") -> TextIO:
    """Open ``file`` as text. Invalid bytes are read as surrogate characters, which ``require_valid_text`` refuses.

    Args:
        encoding: empty for UTF-8, or UTF-16 or UTF-32 where the first bytes say so.
        newline: as of ``open``.

    Raises:
        DataError: it cannot be opened, is no regular file, or is compressed or a spreadsheet by its first bytes.
    """
    try:
        opened = open_regular_file(file)
        head = opened.read(512)
        opened.seek(0)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); restore it or name another") from None
    except SampleError as error:
        raise DataError(f"{error.detail}; name another") from None
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"\x1f\x8b", b"PAR1")):
        opened.close()
        raise DataError(f"{file} is no text but an archive, a spreadsheet or Parquet; save it as CSV in UTF-8")
    encoding = encoding or _detect_encoding(head)
    errors = "surrogateescape" if encoding.startswith("utf-8") else _SURROGATES
    return io.TextIOWrapper(opened, encoding, errors, newline)


def require_valid_text(*texts: str) -> None:
    """Raise SampleError BAD_UTF8 if a text holds a surrogate or a zero byte."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            detail = f"{ascii(text)[:80]} is not UTF-8; save the file as UTF-8 (or name a table's source.encoding)"
            raise SampleError(FaultReason.BAD_UTF8, detail) from None
        if "\0" in text:
            raise SampleError(FaultReason.BAD_UTF8, f"{ascii(text)[:80]} has a zero byte, which no text has: lost data")


def read_csv_rows(
    lines: Iterable[str], delimiter: str, *, quoted: bool = True, is_row: Callable[[list[str]], bool] | None = None
) -> Iterator[tuple[int, list[str] | SampleError]]:
    """Yield for each row of a CSV file the number of its first line, and its cells or what is wrong with it; blank
    lines are skipped.

    Args:
        quoted: False takes quotation marks as part of the text.
        is_row: whether cells are surely a row. A quoted cell over several lines, of which one is surely a row, is taken
            for an unclosed mark.
    """
    reader = _NumberedLines(lines)
    for number, line in reader:
        text = line.rstrip("\r\n")
        if not text:
            continue
        try:
            if not quoted or '"' not in line:
                cells = text.split(delimiter)
                if len(text) > _MAX_LETTERS and max(map(len, cells)) > _MAX_LETTERS:
                    raise SampleError(FaultReason.BAD_SCHEMA, _TOO_LONG)
            else:
                cells = _read_quoted_row(line, delimiter, reader, is_row)
            require_valid_text(*cells)
        except SampleError as error:
            yield number, error
        else:
            yield number, cells


def split_line_into_cells(line: str, delimiter: str) -> list[str]:
    """Split one line into cells; the last quotation mark may be unclosed."""
    for _, cells in read_csv_rows([line], delimiter):
        return line.split(delimiter) if isinstance(cells, SampleError) else cells
    return []


_TOO_LONG = f"the row has a cell of more than {_MAX_LETTERS:,} letters; does a quotation mark not close?"


class _NumberedLines:
    """The numbered lines of a file; lines that were read ahead can be pushed back."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._pushed_back: deque[str] = deque()
        self._number = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while (line := self.next()) is not None:
            yield self._number, line

    def next(self) -> str | None:
        line = self._pushed_back.popleft() if self._pushed_back else next(self._lines, None)
        self._number += line is not None
        return line

    def push_back(self, lines: list[str]) -> None:
        self._pushed_back.extendleft(reversed(lines))
        self._number -= len(lines)


def _read_quoted_row(
    line: str, delimiter: str, reader: _NumberedLines, is_row: Callable[[list[str]], bool] | None
) -> list[str]:
    """Read the cells of the row that begins with ``line``, and further lines if a quoted cell spans them.

    Raises:
        SampleError: BAD_SCHEMA where a quotation mark does not close; the further lines are then pushed back.
    """
    further: list[str] = []
    try:
        cells = _split_cells(line, delimiter, reader, further)
        if is_row is not None and any(
            is_row(split_line_into_cells(other.rstrip("\r\n"), delimiter)) for other in further
        ):
            raise SampleError(FaultReason.BAD_SCHEMA, "a quotation mark closes only in another row")
    except SampleError:
        reader.push_back(further)
        if delimiter == "\t":
            return line.rstrip("\r\n").split(delimiter)
        raise
    return cells


def _split_cells(line: str, delimiter: str, reader: _NumberedLines, further: list[str]) -> list[str]:
    cells = []
    at = 0
    while True:
        if line.startswith('"', at):
            cell, line, at = _read_quoted_cell(line, at + 1, delimiter, reader, further)
        else:
            end = line.find(delimiter, at)
            cell = line[at : end if end >= 0 else len(line)]
            if end < 0:
                cell = cell.rstrip("\r\n")
            at = end if end >= 0 else len(line)
        cells.append(cell)
        if not line.startswith(delimiter, at):
            return cells
        at += len(delimiter)


def _read_quoted_cell(
    line: str, at: int, delimiter: str, reader: _NumberedLines, further: list[str]
) -> tuple[str, str, int]:
    """Read a quoted cell whose text begins at ``at``; returns its text, the line in which it closes, and the position
    after it in that line.
    """
    parts = []
    letters = 0
    while True:
        quote = line.find('"', at)
        part = line[at : quote if quote >= 0 else len(line)]
        parts.append(part)
        letters += len(part)
        if letters > _MAX_LETTERS:
            raise SampleError(FaultReason.BAD_SCHEMA, _TOO_LONG)
        if quote < 0:
            following = reader.next()
            if following is None:
                raise SampleError(FaultReason.BAD_SCHEMA, "a quotation mark does not close")
            further.append(following)
            line, at = following, 0
        elif line.startswith('"', quote + 1):
            parts.append('"')
            at = quote + 2
        elif line.startswith(delimiter, quote + 1) or not line[quote + 1 :].strip("\r\n"):
            return "".join(parts), line, quote + 1
        else:
            shown = line[max(quote - 20, 0) : quote + 20].strip()
            detail = f"a quotation mark ends a cell in the middle, at {shown!r}; two stand for one that is text"
            raise SampleError(FaultReason.BAD_SCHEMA, detail)


def _detect_encoding(head: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    if len(head) > 1 and re.fullmatch(rb"(?:[^\0]\0)+[^\0]?", head):
        return "utf-16-le"
    if len(head) > 1 and re.fullmatch(rb"(?:\0[^\0])+\0?", head):
        return "utf-16-be"
    return "utf-8"
