"""Imports a table (CSV, TSV, JSON lines or Parquet) with an image and text columns; all rows of one image become one
sample.

Without images (``source.inputs=text``) each row is a sample. Columns of further inputs name their files.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow
import pyarrow.parquet
from pydantic import field_validator

from pipelines.data.importers._delimited import (
    DELIMITERS,
    open_text_file,
    read_csv_rows,
    split_line_into_cells,
)
from pipelines.data.importers._files import resolve_path
from pipelines.data.importers._images import is_image
from pipelines.data.importers._records import iterate_json_lines
from pipelines.data.importers._rows import RowImporter, SourceRow
from pipelines.data.importing.importer import RejectedSample
from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.errors import DataError
from vlmodel.locations import Location

_FORMATS = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")


class Config(RowImporter):
    """Settings of an import of a table with one row or several for each image, see ``RowImporter``."""

    kind: str = "table"
    file: Location
    """The table: .csv, .tsv, .txt, .jsonl, .ndjson or .parquet."""
    delimiter: str = ""
    """Of a CSV; empty for a comma in .csv and a tab in .tsv and .txt, or else the one of comma, tab, semicolon and | by
    which the columns are found."""
    encoding: str = ""
    """Of a CSV or of JSON lines, as "cp1252"; empty for UTF-8, or UTF-16 where the first bytes are such."""
    header: list[str] = []
    """Names of a CSV's columns, where its first line does not have them."""

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, delimiter: str) -> str:
        delimiter = delimiter.replace("\\t", "\t")  # as a shell passes it on
        if set(delimiter) & set('"\r\n'):
            raise ValueError(f"{delimiter!r} cannot separate cells; name a comma, \\t, a semicolon or |")
        return delimiter

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str) -> str:
        try:
            return codecs.lookup(encoding).name if encoding else ""
        except LookupError:
            raise ValueError(f"{encoding!r} is no encoding that Python knows; name one as utf-8 or cp1252") from None

    def _title(self) -> str:
        return self.file

    def _base_folder(self) -> Path:
        return self._table_file().parent

    def _source_files(self) -> list[Path]:
        return [self._table_file()]

    def _read_rows(self) -> Iterator[SourceRow | RejectedSample]:
        file = self._table_file()
        match _FORMATS[file.suffix.lower()]:
            case "csv":
                yield from self._iterate_csv_rows(file)
            case "jsonl":
                yield from _iterate_jsonl_rows(file, self.encoding)
            case "parquet":
                yield from self._iterate_parquet_rows(file)

    def _table_file(self) -> Path:
        path = resolve_path(self.file)
        suffix = path.suffix.lower()
        if not path.is_file():
            problem = "is no file" if path.exists() else "does not exist"
            raise DataError(f"table {self.file!r} {problem}; set source.file to the table")
        if suffix in _SPREADSHEETS:
            raise DataError(f"table {self.file!r} is a spreadsheet; save its sheet as CSV (UTF-8) and name that")
        if suffix not in _FORMATS:
            raise DataError(f"table {self.file!r} is none of {', '.join(_FORMATS)}; convert it to one of these")
        return path

    def _iterate_csv_rows(self, file: Path) -> Iterator[SourceRow | RejectedSample]:
        with open_text_file(file, self.encoding) as lines:
            first, skipped = lines.readline(), 0
            delimiter = self.delimiter
            if (named := re.fullmatch(r"sep=(.)[\r\n]*", first)) is not None:  # a spreadsheet's own line
                delimiter, first, skipped = delimiter or named[1], lines.readline(), 1
            if not first.strip() and not self.header:
                raise DataError(
                    f"{file} {'begins with an empty line' if first else 'is empty'}; its first line names the columns "
                    "(or source.header does): image,question,answer"
                )
            delimiter = delimiter or self._detect_delimiter(file, first)
            columns = self.header
            rows = read_csv_rows(
                chain([first], lines), delimiter, is_row=lambda cells: self._is_image_row(cells, columns)
            )
            if not columns:
                _, cells = next(rows, (0, []))
                if isinstance(cells, SampleError):
                    raise DataError(
                        f"{file}: the header cannot be read ({cells.detail}); name columns by source.header"
                    )
                columns = [name.strip() for name in cells]
            other = len(columns) == 1 or any(mark in name for mark in DELIMITERS for name in columns)
            note = f"; its cells are separated by {delimiter!r} (source.delimiter)" if other else ""
            self._require_columns(columns, note)
            for number, cells in rows:
                number += skipped
                place = f"{file.name}:{number}"
                if isinstance(cells, SampleError):
                    yield RejectedSample(place, cells.reason, cells.detail)
                elif len(cells) != len(columns):
                    detail = f"{len(cells)} cells, but the table has {len(columns)} columns"
                    yield RejectedSample(place, FaultReason.BAD_SCHEMA, detail)
                else:
                    yield SourceRow(place, number, dict(zip(columns, cells, strict=True)))

    def _detect_delimiter(self, file: Path, first: str) -> str:
        """Detect the delimiter: the usual one of the file's type, or the one by which its first line has the
        columns, or most cells.
        """
        usual = "," if file.suffix.lower() == ".csv" else "\t"
        by_delimiter = {mark: split_line_into_cells(first.rstrip("\r\n"), mark) for mark in (usual, *DELIMITERS)}
        if self.header:
            fitting = [mark for mark, cells in by_delimiter.items() if len(cells) == len(self.header)]
            fitting.sort(key=lambda mark: not self._is_image_row(by_delimiter[mark], self.header))
        else:
            texts = {self.question, self.label, *self.captions}
            further = {*self.columns.values(), *chain.from_iterable(self.rows.values())}
            wanted = {self.image} if self.imports_input("image") else texts | further
            fitting = [mark for mark, cells in by_delimiter.items() if wanted & {cell.strip() for cell in cells}]
            # A header with the image column alone fits any delimiter.
            fitting.sort(key=lambda mark: len(by_delimiter[mark]) < 2)
        # Where none has the columns, an error will list them: as a person reads them.
        return fitting[0] if fitting else max(by_delimiter, key=lambda mark: len(by_delimiter[mark]))

    def _is_image_row(self, cells: list[str], columns: list[str]) -> bool:
        if not self.imports_input("image") or self.image not in columns or len(cells) != len(columns):
            return False
        return is_image(cells[columns.index(self.image)])

    def _iterate_parquet_rows(self, file: Path) -> Iterator[SourceRow | RejectedSample]:
        try:
            with pyarrow.parquet.ParquetFile(file) as table:
                columns = self._require_columns(table.schema_arrow.names)
                number = 0
                for batch in table.iter_batches(batch_size=64, columns=columns):
                    for cells in batch.to_pylist():
                        yield SourceRow(f"{file.name}:{number}", number, cells)
                        number += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file} cannot be read as Parquet ({error}); write it again") from None


def _iterate_jsonl_rows(file: Path, encoding: str) -> Iterator[SourceRow | RejectedSample]:
    for number, cells in iterate_json_lines(file, encoding):
        place = f"{file.name}:{number}"
        if isinstance(cells, SampleError):
            yield RejectedSample(place, cells.reason, cells.detail)
        else:
            yield SourceRow(place, number, cells)
