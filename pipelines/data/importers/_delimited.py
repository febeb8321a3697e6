"""Delimited text, of which a bad row costs only itself."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pipelines.data.errors import Reason, SampleError


def open_text(file: Path) -> TextIO:
    """``file`` as UTF-8 in which surrogates stand for bytes that are none; ``require_utf8`` finds them."""
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def require_utf8(*texts: str) -> None:
    """Raises SampleError BAD_UTF8 where a text holds a surrogate."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise SampleError(Reason.BAD_UTF8, f"{ascii(text)[:80]} is not UTF-8") from None


def csv_rows(
    lines: Iterator[str], delimiter: str, quoted: bool = True
) -> Iterator[tuple[int, list[str] | SampleError]]:
    """(number of lines read so far, cells or what is wrong with the row); blank rows are passed over."""
    if quoted:
        rows = csv.reader(lines, delimiter=delimiter)
    else:
        rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    while True:
        try:
            row = next(rows, None)
            if row is None:
                return
            require_utf8(*row)
            if row:
                yield rows.line_num, row
        except csv.Error as error:
            yield rows.line_num, SampleError(Reason.BAD_SCHEMA, f"the row does not parse: {error}")
        except SampleError as error:
            yield rows.line_num, error
