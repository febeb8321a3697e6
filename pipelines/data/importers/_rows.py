"""The base class of importers whose source has rows with an image and texts in columns: all rows of one image become
one sample.
"""

from __future__ import annotations

import hashlib
import posixpath
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import model_validator

from pipelines.data.importers._answers import consensus_answer
from pipelines.data.importers._files import fingerprint_files, key_of_image, resolve_path, to_valid_key
from pipelines.data.importers._images import (
    MISSING_IMAGE,
    SourceImages,
    extension_of_image_bytes,
    open_source_images,
    require_image_extension,
)
from pipelines.data.importers._inputs import read_input
from pipelines.data.importers._row_values import ROW_EXTENSION, row_to_json
from pipelines.data.importing.importer import Importer, RejectedSample, SourceContents, SourceSample
from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.data.tars.inputs import TEXT, input_requirements
from pipelines.data.tars.sample import GROUP
from pipelines.data.tars.shards import parse_split_name
from pipelines.errors import DataError
from vlmodel.locations import Location
from vlmodel.sample import Question, SampleTexts

_COLUMNS_OF = {"image": ("image",), TEXT: ("captions", "question", "answer", "answers", "question_id", "label")}
"""Settings whose columns are read for an input alone."""
SPLIT_OF_FILE = "(split)"
"""Column of a row's split that an importer adds, by the row's file."""
_TEXT_FIELDS = ("answer", "caption", "question", "raw", "text")
"""Fields of a struct that hold the text that it stands for."""


class RowImporter(Importer):
    """An importer of rows, which lie in a table or the like. A missing column counts as empty, unless a setting names
    it.

    A cell of a caption, question, answer or answers column holds one text, or a list of texts; a struct may stand for
    a text, as VQA's ``{"answer": "yes", "answer_id": 1}``. An image is one file, however its name is spelled: its rows
    are one sample, of one split.
    """

    images: Location = ""
    """Folder or tar that image paths are relative to, itself relative to the source's folder; empty for that folder."""
    missing: list[str] = ["nan", "NaN", "NaT", "<NA>", "#N/A"]
    """Contents of missing cells, beside empty ones and null and NaN of JSON and Parquet."""
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
    """Column of the split (train, val or test). Without it, or where it is empty, a row is of split train; of that a
    tenth each becomes val (data.index.validation_fraction) and test (source.test_fraction), where there is none."""
    key: str = "key"
    """Column of the sample's key; without it rows with the same image are one sample.
    Of texts alone each row is then a sample, whose key is the table's name and the row's number."""
    question_id: str = "question_id"
    """Column of the question's identifier."""
    label: str = "class"
    """Column of the sample's class, which all its rows share."""
    columns: dict[str, str] = {}
    """Columns of further inputs that source.inputs names, as {imu = "imu_file"}: a cell is the path of a file, relative
    to source.images (or to the table, where that is a tar). All rows of a sample have the same, or none."""
    rows: dict[str, list[str]] = {}
    """Further inputs that are rows of values, with the columns of their values, as {row = ["age", "sex"]}. A text
    that is written as a number, or as true or false, is one; a sample without any of the values has no such input."""
    group: str = ""
    """Column of the group, such as the scene or the photographer: samples of one group are in the same split where a
    hash decides. It is stored with the sample."""

    @model_validator(mode="after")
    def _require_column_for_each_input(self) -> Self:
        further = input_requirements(self.inputs).keys() - _COLUMNS_OF.keys()
        if further != self.columns.keys() | self.rows.keys():
            raise ValueError(
                f"columns = {self.columns}, rows = {self.rows} and inputs = {list(self.inputs)}: each input but image "
                "and text needs a column (or columns, in rows), and each of these columns an input; name both"
            )
        for name, columns in self.rows.items():
            if name in self.columns or not columns or len(set(columns)) < len(columns):
                raise ValueError(f"rows.{name} = {columns}: name its columns, each once, and not in columns too")
        return self

    @abstractmethod
    def _title(self) -> str:
        """The name of the source in messages and, without its extension, in the keys of samples without images."""

    @abstractmethod
    def _base_folder(self) -> Path:
        """The folder to which paths in the rows are relative."""

    @abstractmethod
    def _source_files(self) -> list[Path]:
        """List the files that contain the source's rows.

        Raises:
            DataError: there are none.
        """

    @abstractmethod
    def _read_rows(self) -> Iterator[SourceRow | RejectedSample]:
        """Yield the rows in order, reading the files anew at each call."""

    def fingerprint(self) -> str:
        files = self._source_files()
        images = open_source_images(self.inputs, resolve_path(self.images, self._base_folder()))
        further = self._list_further_input_files() if self.columns else set()
        return fingerprint_files(self._base_folder(), [*files, *images.files(), *further])

    def read(self) -> SourceContents:
        images = _LazyImages(resolve_path(self.images, self._base_folder()))
        samples, rejects = self._group_by_sample(images)
        splits = {sample.split for sample in samples.values()}
        if not self.imports_input("image"):
            return SourceContents(
                len(samples), chain(rejects, self._iterate_samples_without_images(samples)), splits=splits
            )
        used = [
            *self._source_files(),
            *(self._folder_of_further_inputs() / path for sample in samples.values() for path in sample.files.values()),
        ]
        read = self._read_samples(images, samples, rejects)
        return SourceContents(len(samples), read, lambda: images.count_skipped_files(used), splits)

    def _folder_of_further_inputs(self) -> Path:
        root = resolve_path(self.images, self._base_folder())
        return root if root.is_dir() else self._base_folder()

    def _list_further_input_files(self) -> set[Path]:
        """List the files of additional inputs that the rows name, whether they exist or not."""
        root, files = self._folder_of_further_inputs(), set()
        for row in self._read_rows():
            if isinstance(row, SourceRow):
                with suppress(SampleError):
                    files |= {root / path for path in self._parse_file_cells(row.cells).values()}
        return files

    def _require_columns(self, present: list[str], note: str = "") -> list[str]:
        """Return the columns that are read; raises DataError if a required one is missing.

        Args:
            note: for messages, what else may be wrong where a column is absent.

        Raises:
            DataError: a column is absent that ``inputs`` require (the image column, any text column, one of
                ``columns``) or that is named by other than its default; or two columns have one name.
        """
        names = ("image", "question", "answer", "answers", "split", "key", "question_id", "group", "label")
        wanted = {name: [getattr(self, name)] for name in names} | {"captions": self.captions}
        unread = {name for of, names in _COLUMNS_OF.items() if not self.imports_input(of) for name in names}
        wanted = {name: columns for name, columns in wanted.items() if name not in unread}
        needed, title = input_requirements(self.inputs), self._title()
        listed = ", ".join(map(repr, present))
        for name, columns in wanted.items():
            default = type(self).model_fields[name].get_default()
            for column in columns:
                is_default = column in ([default] if isinstance(default, str) else default)
                optional = is_default and not (name == "image" and needed["image"])
                if column and column not in (*present, SPLIT_OF_FILE) and not optional:
                    alone = name == "image" and self.imports_input(TEXT)
                    remedy = ", or source.inputs=text for texts alone" if alone else ""
                    raise DataError(
                        f"{title} has no column {column!r} (source.{name}); its columns are {listed}{note}: set "
                        f"source.{name} to one of them{remedy}"
                    )
                if present.count(column) > 1:
                    raise DataError(f"{title} has several columns {column!r} (source.{name}); rename all but one")
        further = [(f"columns.{name}", column) for name, column in self.columns.items()]
        further += [(f"rows.{name}", column) for name, columns in self.rows.items() for column in columns]
        for setting, column in further:
            if present.count(column) != 1:
                raise DataError(
                    f"{title} has {present.count(column)} columns {column!r} (source.{setting}); its columns are "
                    f"{listed}{note}"
                )
        if needed.get(TEXT) and not {self.question, self.label, *self.captions} & set(present):
            raise DataError(
                f"{title} has neither a caption nor a question nor a class column; name one of {listed} by "
                f"source.captions, source.question or source.label, or take images alone by source.inputs=image{note}"
            )
        read = [column for columns in wanted.values() for column in columns if column in present]
        return list(dict.fromkeys([*read, *(column for _, column in further)]))

    def _group_by_sample(self, images: _LazyImages) -> tuple[dict[str, _GroupedSample], list[RejectedSample]]:
        """Group the rows' texts by sample, in the order of first appearance; images are not kept in memory."""
        samples: dict[str, _GroupedSample] = {}
        split_of_image: dict[str, str] = {}
        rejects = []
        for row in self._read_rows():
            if isinstance(row, RejectedSample):
                rejects.append(row)
                continue
            try:
                identity, image, key = self._sample_identity(row, images)
                split = self._parse_split_cell(row.cells)
                group = self._text_of_cell(row.cells, self.group)
                texts, files = self._texts_of_row(row.cells), self._parse_file_cells(row.cells)
                rows = self._rows_of_values(row.cells)
                if image and split_of_image.setdefault(image, split) != split:
                    detail = f"its image is in split {split_of_image[image]!r} by another row, {split!r} by this one"
                    raise SampleError(FaultReason.BAD_SCHEMA, detail)
                sample = samples.setdefault(
                    identity, _GroupedSample(split, image, key, group, files, rows, texts.label)
                )
                sample.require_same_as_first_row(split, image, group, files | rows, texts.label)
            except SampleError as error:
                rejects.append(RejectedSample(row.place, error.reason, error.detail))
            else:
                sample.captions += [caption for caption in texts.captions if caption not in sample.captions]
                sample.questions += texts.questions
        return samples, rejects

    def _read_samples(
        self, images: _LazyImages, samples: dict[str, _GroupedSample], rejects: list[RejectedSample]
    ) -> Iterator[SourceSample | RejectedSample]:
        yield from rejects
        for row in self._read_rows():
            if isinstance(row, RejectedSample):
                continue
            try:
                identity, image_identity, _ = self._sample_identity(row, images)
            except SampleError:
                continue  # the first pass has reported it
            if identity not in samples or samples[identity].image != image_identity:
                continue
            sample = samples.pop(identity)
            try:
                inputs = self._read_further_inputs(sample)
                if isinstance(image := self._parse_image_cell(row.cells), bytes):
                    inputs["image"] = image, extension_of_image_bytes(image)
                elif image is not None:
                    inputs["image"] = images.read(image)
            except SampleError as error:
                yield RejectedSample(sample.key, error.reason, error.detail)
            else:
                yield SourceSample(sample.split, sample.key, inputs, sample.texts, sample.extra_json)

    def _iterate_samples_without_images(
        self, samples: Mapping[str, _GroupedSample]
    ) -> Iterator[SourceSample | RejectedSample]:
        for sample in samples.values():
            try:
                inputs = self._read_further_inputs(sample)
            except SampleError as error:
                yield RejectedSample(sample.key, error.reason, error.detail)
            else:
                yield SourceSample(sample.split, sample.key, inputs, sample.texts, sample.extra_json)

    def _read_further_inputs(self, sample: _GroupedSample) -> dict[str, tuple[bytes, str]]:
        """Read the additional inputs of a sample."""
        files = {name: read_input(self._folder_of_further_inputs(), name, path) for name, path in sample.files.items()}
        return files | {name: (row.encode(), ROW_EXTENSION) for name, row in sample.rows.items()}

    def _sample_identity(self, row: SourceRow, images: _LazyImages) -> tuple[str, str, str]:
        """Return the value that rows of one sample share, the identity of the image ("" if there is none), and the
        sample's key.
        """
        named = self._text_of_cell(row.cells, self.key)
        image = self._parse_image_cell(row.cells) if self.imports_input("image") else None
        if image is None:
            name = named or f"{Path(self._title()).stem}-{row.number:08d}"
            return name, "", to_valid_key(name)
        if isinstance(image, bytes):
            identity = name = hashlib.sha256(image).hexdigest()[:32]
        else:
            identity, name = images.image_identity(image), posixpath.normpath(image)
        return (named, identity, to_valid_key(named)) if named else (identity, identity, key_of_image(name))

    def _parse_image_cell(self, cells: Mapping[str, Any]) -> str | bytes | None:
        """Return the path or the bytes of the image that a row names; None if it is missing and optional."""
        cell = cells.get(self.image)
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        if self._is_missing_cell(cell):
            if input_requirements(self.inputs)["image"]:
                raise SampleError(MISSING_IMAGE, f"column {self.image!r} is empty")
            return None
        if not isinstance(cell, str | bytes):
            raise SampleError(FaultReason.BAD_SCHEMA, f"{self.image} = {cell!r:.80} is neither a path nor bytes")
        if isinstance(cell, str):
            cell = cell.strip()
            require_image_extension(cell)
        return cell

    def _parse_file_cells(self, cells: Mapping[str, Any]) -> dict[str, str]:
        """Return the paths of a row's additional inputs, without missing ones."""
        paths = {name: self._text_of_cell(cells, column) for name, column in self.columns.items()}
        return {name: path for name, path in paths.items() if path is not None}

    def _rows_of_values(self, cells: Mapping[str, Any]) -> dict[str, str]:
        """Return the JSON of each input that is a row of values, without those whose values are all missing."""
        values = {
            name: {column: None if self._is_missing_cell(cells.get(column)) else cells[column] for column in columns}
            for name, columns in self.rows.items()
        }
        return {name: row_to_json(row) for name, row in values.items() if any(v is not None for v in row.values())}

    def _parse_split_cell(self, cells: Mapping[str, Any]) -> str:
        cell = cells.get(self.split)
        if self._is_missing_cell(cell):
            return "train"
        split = parse_split_name(cell) if isinstance(cell, str) else None
        if split is None:
            raise SampleError(FaultReason.BAD_SCHEMA, f"split {cell!r:.80} is none of train, val and test")
        return split

    def _texts_of_row(self, cells: Mapping[str, Any]) -> SampleTexts:
        if not self.imports_input(TEXT):
            return SampleTexts()
        captions = [text for column in self.captions for text in self._texts_of_cell(cells, column)]
        label = self._text_of_cell(cells, self.label)
        return SampleTexts(tuple(captions), tuple(self._questions_of_row(cells)), label)

    def _questions_of_row(self, cells: Mapping[str, Any]) -> list[Question]:
        questions = self._texts_of_cell(cells, self.question)
        if not isinstance(cells.get(self.question), list):
            all_answers = tuple(self._texts_of_cell(cells, self.answers))
            answer = self._text_of_cell(cells, self.answer) or consensus_answer(all_answers)
            question_id = self._text_of_cell(cells, self.question_id)
            return [Question(text, answer, all_answers, question_id) for text in questions]
        answers = cells.get(self.answer)
        if answers is None:
            return [Question(text) for text in questions]
        if not isinstance(answers, list) or len(answers) != len(questions):
            raise SampleError(
                FaultReason.BAD_SCHEMA, f"{len(questions)} questions, but {self.answer} = {answers!r:.80}"
            )
        texts = [self._cell_to_text(answer, self.answer) for answer in answers]
        return [Question(text, answer) for text, answer in zip(questions, texts, strict=True)]

    def _texts_of_cell(self, cells: Mapping[str, Any], column: str) -> list[str]:
        """Return the texts of a cell that holds one text or a list, without missing ones."""
        cell = _unwrap_struct_cell(cells.get(column), column)
        texts = (self._cell_to_text(item, column) for item in (cell if isinstance(cell, list) else [cell]))
        return [text for text in texts if text is not None]

    def _text_of_cell(self, cells: Mapping[str, Any], column: str) -> str | None:
        return self._cell_to_text(cells.get(column), column)

    def _cell_to_text(self, cell: Any, column: str) -> str | None:
        """Convert a table cell to text; None if it is missing. Whole numbers are accepted: tables hold counts as
        numbers.
        """
        cell = _unwrap_struct_cell(cell, column)
        if self._is_missing_cell(cell):
            return None
        if isinstance(cell, float | Decimal) and cell == cell // 1:
            cell = int(cell)
        if isinstance(cell, str | int) and not isinstance(cell, bool):
            return str(cell).strip()
        raise SampleError(FaultReason.BAD_SCHEMA, f"{column} = {cell!r:.80} is not text")

    def _is_missing_cell(self, cell: Any) -> bool:
        if isinstance(cell, str):
            return not cell.strip() or cell.strip() in self.missing
        return cell is None or cell == b"" or cell != cell


class SourceRow(NamedTuple):
    """One row of a source, with its cells by column."""

    place: str
    """File name and row, for a person."""
    number: int
    cells: Mapping[str, Any]


@dataclass
class _GroupedSample:
    split: str
    image: str
    """Identity of the image's file, or the hash of its bytes; "" where it has none."""
    key: str
    group: str | None
    files: dict[str, str]
    """Paths of its further inputs."""
    rows: dict[str, str]
    """JSON of those that are rows of values."""
    label: str | None = None
    captions: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    @property
    def texts(self) -> SampleTexts:
        return SampleTexts(tuple(self.captions), tuple(self.questions), self.label)

    @property
    def extra_json(self) -> dict[str, Any] | None:
        return None if self.group is None else {GROUP: self.group}

    def require_same_as_first_row(
        self, split: str, image: str, group: str | None, inputs: dict[str, str], label: str | None
    ) -> None:
        """Raise SampleError if a row of the sample contradicts the sample's first row."""
        own = self.files | self.rows
        of_files = [(name, own.get(name), inputs.get(name)) for name in sorted(own | inputs)]
        same = (("split", self.split, split), ("group", self.group, group), ("class", self.label, label))
        for name, of_sample, of_row in (*same, *of_files):
            if of_sample != of_row:
                detail = f"sample {self.key!r} is in {name} {of_sample!r} by another row, {of_row!r} by this one"
                raise SampleError(FaultReason.BAD_SCHEMA, detail)
        if image != self.image:
            raise SampleError(FaultReason.DUPLICATE_KEY, "another row has this key with another image")


class _LazyImages:
    """The images that the rows' paths name, listed when a path is first read, as rows may hold all images
    themselves.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._images: SourceImages | None = None

    def image_identity(self, name: str) -> str:
        """Return the identity of an image; its name if it does not exist, which ``read`` reports."""
        try:
            return self._list_images().image_identity(name)
        except SampleError:
            return posixpath.normpath(name)

    def read(self, name: str) -> tuple[bytes, str]:
        return self._list_images().read(name)

    def count_skipped_files(self, used: Iterable[Path]) -> Counter[str]:
        return self._images.count_skipped_files(used) if self._images is not None else Counter()

    def _list_images(self) -> SourceImages:
        if self._images is None:
            self._images = SourceImages(self._root)
        return self._images


def _unwrap_struct_cell(cell: Any, column: str) -> Any:
    """Replace a struct cell by the text or the list of texts in it; other cells stay unchanged."""
    if not isinstance(cell, Mapping):
        return cell
    for name in _TEXT_FIELDS:
        if isinstance(cell.get(name), str | list):
            return cell[name]
    fields = ", ".join(map(str, cell))
    raise SampleError(
        FaultReason.BAD_SCHEMA, f"{column} is a struct of {fields:.80}, none of {', '.join(_TEXT_FIELDS)}; flatten it"
    )
