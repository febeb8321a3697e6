"""A table (CSV, TSV, JSON lines or Parquet) with an image and text columns; all rows of one image become one sample.

With ``members`` "texts" it needs no image column, and each row is a sample; with "images" it needs no text column.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from pipelines.data.errors import DataError, Reason, SampleError
from pipelines.data.importer import Importer, Reading, Record, Reject
from pipelines.data.importers._answers import consensus
from pipelines.data.importers._delimited import csv_rows, open_text
from pipelines.data.importers._files import Images, extension_of, fingerprint, fit_key, images_for, key_of
from pipelines.data.sample import Members, Question, Texts
from pipelines.data.shards import canonical_split
from vlmodel import images as image_files
from vlmodel.locations import Location

_FORMATS = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_UNREAD: dict[Members, tuple[str, ...]] = {
    "pairs": (),
    "texts": ("image",),
    "images": ("captions", "question", "answer", "answers", "question_id"),
}
"""Settings whose columns are not read."""


class Config(Importer):
    """A column that is absent is taken as empty, unless it was named by other than its default.

    A cell of a caption, question, answer or answers column holds one text, or (JSON lines, Parquet) a list of texts.
    """

    kind: str = "table"
    file: Location
    """The table: .csv, .tsv, .txt, .jsonl, .ndjson or .parquet."""
    images: Location = ""
    """Folder or tar that image paths are relative to, itself relative to the table's folder; empty for that folder."""
    delimiter: str = ""
    """Of a CSV; empty for a comma in .csv and a tab in .tsv and .txt."""
    header: list[str] = []
    """Names of a CSV's columns, where its first line does not name them."""
    image: str = "image"
    """Column of the image: a path, bytes, or a struct of ``bytes`` and ``path``."""
    captions: list[str] = ["caption", "captions"]
    """Columns of captions."""
    question: str = "question"
    """Column of the question, or of a list of questions."""
    answer: str = "answer"
    """Column of its answer; for a list of questions, a list as long."""
    answers: str = "answers"
    """Column of all annotators' answers to one question; the most common one is ``answer`` where that is empty."""
    split: str = "split"
    """Column of the split; without it all rows are of split train."""
    key: str = "key"
    """Column of the sample's key; without it rows with the same image are one sample.
    Of texts alone each row is then a sample, whose key is the table's name and the row's number."""
    question_id: str = "question_id"
    """Column of the question's identifier."""

    def fingerprint(self) -> str:
        file = self._file()
        return fingerprint(file.parent, [file], [images_for(self.members, file.parent / self.images)])

    def read(self) -> Reading:
        file = self._file()
        samples, rejects = self._group(file)
        if self.members == "texts":
            return Reading(len(samples), chain(rejects, _texts_alone(samples)))
        return Reading(len(samples), self._records(file, samples, rejects))

    def _file(self) -> Path:
        path = Path(self.file).expanduser()
        if not path.is_file():
            raise DataError(f"table {self.file!r} does not exist; set source.file to the table")
        if path.suffix.lower() not in _FORMATS:
            raise DataError(f"table {self.file!r} is none of {', '.join(_FORMATS)}; convert it to one of these")
        return path

    def _rows(self, file: Path) -> Iterator[_Row | Reject]:
        match _FORMATS[file.suffix.lower()]:
            case "csv":
                delimiter = self.delimiter or ("," if file.suffix.lower() == ".csv" else "\t")
                yield from _csv_rows(file, delimiter, self.header, self._require_columns)
            case "jsonl":
                yield from _jsonl_rows(file)
            case "parquet":
                yield from _parquet_rows(file, self._require_columns)

    def _require_columns(self, present: list[str]) -> list[str]:
        """The columns to read.

        Raises:
            DataError: the image column, all text columns, or a column named by other than its default are absent, and
                are of what ``members`` asks for.
        """
        names = ("image", "question", "answer", "answers", "split", "key", "question_id")
        wanted = {name: [getattr(self, name)] for name in names} | {"captions": self.captions}
        wanted = {name: columns for name, columns in wanted.items() if name not in _UNREAD[self.members]}
        for name, columns in wanted.items():
            default = type(self).model_fields[name].get_default()
            for column in columns:
                optional = name != "image" and column in ([default] if isinstance(default, str) else default)
                if column and column not in present and not optional:
                    listed = ", ".join(map(repr, present))
                    alone = name == "image" and self.members == "pairs"
                    remedy = "; source.members=texts takes texts alone" if alone else ""
                    raise DataError(
                        f"{self.file} has no column {column!r} (source.{name}); its columns are {listed}{remedy}"
                    )
        if self.members != "images" and not {self.question, *self.captions} & set(present):
            raise DataError(
                f"{self.file} has neither a caption nor a question column; name one of {', '.join(map(repr, present))} "
                "by source.captions or source.question, or take images alone by source.members=images"
            )
        return [column for columns in wanted.values() for column in columns if column in present]

    def _group(self, file: Path) -> tuple[dict[str, _Sample], list[Reject]]:
        """All texts by sample identity, in order of first appearance; images are not kept."""
        samples: dict[str, _Sample] = {}
        rejects = []
        for row in self._rows(file):
            if isinstance(row, Reject):
                rejects.append(row)
                continue
            try:
                identity, image = self._identity(row)
                split = _split(row.cells.get(self.split))
                texts = self._texts(row.cells)
                sample = samples.setdefault(identity, _Sample(split, image))
                sample.require_same(identity, split, image)
            except SampleError as error:
                rejects.append(Reject(row.place, error.reason, error.detail))
            else:
                sample.captions += [caption for caption in texts.captions if caption not in sample.captions]
                sample.questions += texts.questions
        return samples, rejects

    def _records(self, file: Path, samples: dict[str, _Sample], rejects: list[Reject]) -> Iterator[Record | Reject]:
        yield from rejects
        images: Images | None = None
        for row in self._rows(file):
            if isinstance(row, Reject):
                continue
            try:
                identity, name = self._identity(row)
            except SampleError:
                continue  # The first pass has reported it.
            if identity not in samples or samples[identity].image != name:
                continue
            sample = samples.pop(identity)
            key = fit_key(identity) if identity != name else key_of(name)
            try:
                image = _image(row.cells[self.image], self.image)
                if isinstance(image, bytes):
                    extension = _sniff(image)
                else:
                    images = images or Images(file.parent / self.images)
                    image, extension = images.read(image)
            except SampleError as error:
                yield Reject(key, error.reason, error.detail)
            else:
                yield Record(sample.split, key, image, extension, sample.texts)

    def _identity(self, row: _Row) -> tuple[str, str]:
        """What makes rows one sample, and the image's path or the hash of its bytes; no image of texts alone."""
        if self.members == "texts":
            return _text(row.cells.get(self.key), self.key) or f"{Path(self.file).stem}-{row.number:08d}", ""
        image = _image(row.cells.get(self.image), self.image)
        name = hashlib.sha256(image).hexdigest()[:32] if isinstance(image, bytes) else image
        return _text(row.cells.get(self.key), self.key) or name, name

    def _texts(self, cells: Mapping[str, Any]) -> Texts:
        if self.members == "images":
            return Texts()
        return Texts(tuple(self._captions(cells)), tuple(self._questions(cells)))

    def _captions(self, cells: Mapping[str, Any]) -> list[str]:
        return [text for column in self.captions for text in _texts(cells.get(column), column)]

    def _questions(self, cells: Mapping[str, Any]) -> list[Question]:
        questions = _texts(cells.get(self.question), self.question)
        if not isinstance(cells.get(self.question), list):
            given = tuple(_texts(cells.get(self.answers), self.answers))
            answer = _text(cells.get(self.answer), self.answer) or consensus(given)
            question_id = _text(cells.get(self.question_id), self.question_id)
            return [Question(text, answer, given, question_id) for text in questions]
        answers = cells.get(self.answer)
        if answers is None:
            return [Question(text) for text in questions]
        if not isinstance(answers, list) or len(answers) != len(questions):
            raise SampleError(Reason.BAD_SCHEMA, f"{len(questions)} questions, but {self.answer} = {answers!r:.80}")
        return [Question(text, _text(answer, self.answer)) for text, answer in zip(questions, answers, strict=True)]


class _Row(NamedTuple):
    place: str
    """File name and row, for a person."""
    number: int
    cells: Mapping[str, Any]


@dataclass
class _Sample:
    split: str
    image: str
    captions: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    @property
    def texts(self) -> Texts:
        return Texts(tuple(self.captions), tuple(self.questions))

    def require_same(self, identity: str, split: str, image: str) -> None:
        if split != self.split:
            detail = f"sample {identity!r} is in split {self.split!r} by another row, {split!r} by this one"
            raise SampleError(Reason.BAD_SCHEMA, detail)
        if image != self.image:
            raise SampleError(Reason.DUPLICATE_KEY, f"another row has this key with image {self.image!r}")


def _texts_alone(samples: Mapping[str, _Sample]) -> Iterator[Record]:
    for identity, sample in samples.items():
        yield Record(sample.split, fit_key(identity), None, None, sample.texts)


def _csv_rows(
    file: Path, delimiter: str, header: list[str], require_columns: Callable[[list[str]], Any]
) -> Iterator[_Row | Reject]:
    with open_text(file) as lines:
        rows = csv_rows(lines, delimiter)
        columns = header
        if not header:
            _, first = next(rows, (0, []))
            if isinstance(first, SampleError):
                raise DataError(f"{file}: the header cannot be read ({first.detail}); name columns by source.header")
            columns = first
        require_columns(columns)
        for number, row in rows:
            place = f"{file.name}:{number}"
            if isinstance(row, SampleError):
                yield Reject(place, row.reason, row.detail)
            elif len(row) != len(columns):
                yield Reject(place, Reason.BAD_SCHEMA, f"{len(row)} cells, but the table has {len(columns)} columns")
            else:
                yield _Row(place, number, dict(zip(columns, row, strict=True)))


def _jsonl_rows(file: Path) -> Iterator[_Row | Reject]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{file.name}:{number}"
            if not line.strip():
                continue
            try:
                cells = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield Reject(place, Reason.BAD_UTF8, "the line is not UTF-8")
            except (ValueError, RecursionError) as error:
                yield Reject(place, Reason.BAD_JSON, str(error))
            else:
                if isinstance(cells, dict):
                    yield _Row(place, number, cells)
                else:
                    yield Reject(place, Reason.BAD_SCHEMA, f"{line[:80]!r} is not a JSON object")


def _parquet_rows(file: Path, require_columns: Callable[[list[str]], list[str]]) -> Iterator[_Row | Reject]:
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            columns = require_columns(table.schema_arrow.names)
            number = 0
            for batch in table.iter_batches(batch_size=64, columns=columns):
                for cells in batch.to_pylist():
                    yield _Row(f"{file.name}:{number}", number, cells)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as Parquet ({error}); write it anew") from None


def _image(cell: Any, column: str) -> str | bytes:
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise SampleError(Reason.MISSING_IMAGE, f"column {column!r} is empty")
    if not isinstance(cell, str | bytes):
        raise SampleError(Reason.BAD_SCHEMA, f"{column} = {cell!r:.80} is neither a path nor bytes")
    if isinstance(cell, str):
        extension_of(cell)
    return cell


def _sniff(data: bytes) -> str:
    if (extension := image_files.extension_of(data)) is not None:
        return extension
    raise SampleError(
        Reason.UNDECODABLE_IMAGE, f"bytes that start with {data[:8]!r} are no JPEG, PNG, GIF, BMP or WebP"
    )


def _split(cell: Any) -> str:
    if cell is None or cell == "":
        return "train"
    split = canonical_split(cell) if isinstance(cell, str) else None
    if split is None:
        raise SampleError(Reason.BAD_SCHEMA, f"split {cell!r:.80} is none of train, val and test")
    return split


def _texts(cell: Any, column: str) -> list[str]:
    cells = cell if isinstance(cell, list) else [cell]
    return [text for text in (_text(one, column) for one in cells) if text is not None]


def _text(cell: Any, column: str) -> str | None:
    """A cell as text; None where it is empty. Whole numbers are texts too: tables hold counts as numbers."""
    if cell is None or cell != cell:
        return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if isinstance(cell, str | int) and not isinstance(cell, bool):
        return str(cell).strip() or None
    raise SampleError(Reason.BAD_SCHEMA, f"{column} = {cell!r:.80} is not text")
