"""Reads files of records: JSON lines, a JSON list, Parquet. A bad line of JSON lines does not affect the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet

from pipelines.data.importers._delimited import open_text_file, require_valid_text
from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.errors import DataError

EXTENSIONS = (".json", ".jsonl", ".ndjson", ".parquet")

_CHUNK = 1 << 20
_SPACES = " \t\r\n"

Record = tuple[int, Mapping[str, Any] | SampleError]
"""The number of a line, item or row, and its fields or what is wrong with it."""


def iterate_records(file: Path) -> Iterator[Record]:
    """Iterate over the records of a file, without loading it whole.

    Raises:
        DataError: it cannot be read, is of another kind, or is a JSON list that breaks off.
    """
    match file.suffix.lower():
        case ".jsonl" | ".ndjson":
            yield from iterate_json_lines(file)
        case ".json":
            yield from _iterate_json_list(file)
        case ".parquet":
            yield from _iterate_parquet(file)
        case other:
            raise DataError(f"{file} has the extension {other!r}, none of {', '.join(EXTENSIONS)}; convert it")


def iterate_json_lines(file: Path, encoding: str = "") -> Iterator[Record]:
    """Iterate over the objects of a JSON-lines file with their line numbers, from 1. Blank lines are skipped.

    Args:
        encoding: as of ``open_text_file``.

    Raises:
        DataError: as ``open_text_file``.
    """
    with open_text_file(file, encoding, newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _parse_object(line)


def _parse_object(text: str) -> Mapping[str, Any] | SampleError:
    try:
        require_valid_text(text)
        value = json.loads(text)
    except SampleError as error:
        return error
    except (ValueError, RecursionError) as error:
        return SampleError(FaultReason.BAD_JSON, str(error))
    return value if isinstance(value, dict) else _not_an_object_error(value)


def _iterate_json_list(file: Path) -> Iterator[Record]:
    """Iterate over the items of a JSON list with their numbers, from 0. They are parsed while the file is read."""
    with open_text_file(file) as opened:
        text = _JsonTextBuffer(opened)
        if text.next_character() != "[":
            raise DataError(f"{file} is no JSON list of records; write one, or save JSON lines as .jsonl")
        text.skip(1)
        number = 0
        while (first := text.next_character()) != "]":
            if number:
                if first != ",":
                    raise DataError(_broken_record_error(file, number, "no comma follows the one before"))
                text.skip(1)
            try:
                value = text.take_value()
            except (ValueError, RecursionError) as error:
                raise DataError(_broken_record_error(file, number, str(error))) from None
            yield number, value if isinstance(value, dict) else _not_an_object_error(value)
            number += 1


class _JsonTextBuffer:
    """A buffer of a file's text that reads more of the file as needed."""

    def __init__(self, opened: TextIO) -> None:
        self._opened, self._text, self._at, self._is_whole = opened, "", 0, False
        self._decoder = json.JSONDecoder()

    def next_character(self) -> str:
        """Return the next character that is no white space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACES:
                self._at += 1
            if self._at < len(self._text) or not self._read_more(_CHUNK):
                return self._text[self._at : self._at + 1]

    def skip(self, count: int) -> None:
        self._at += count

    def take_value(self) -> Any:
        """Parse the JSON value that begins here; ValueError if there is none."""
        self.next_character()
        more = _CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError:
                if not self._read_more(more):
                    raise
            else:
                # A number goes on until something else follows.
                if end < len(self._text) or not self._read_more(more):
                    self._at = end
                    return value
            more *= 2

    def _read_more(self, letters: int) -> bool:
        if self._is_whole:
            return False
        read = self._opened.read(letters)
        self._is_whole = not read
        self._text, self._at = self._text[self._at :] + read, 0
        return bool(read)


def _iterate_parquet(file: Path) -> Iterator[Record]:
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches(batch_size=64):
                for record in batch.to_pylist():
                    yield number, record
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as Parquet ({error}); write it again") from None


def _not_an_object_error(value: Any) -> SampleError:
    return SampleError(FaultReason.BAD_SCHEMA, f"{value!r:.80} is not a JSON object")


def _broken_record_error(file: Path, number: int, reason: str) -> str:
    return f"{file} cannot be read from record {number} on ({reason}); download it again, or save it as .jsonl"
