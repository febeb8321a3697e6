"""Imports a data set of Hugging Face from disk: the files that ``save_to_disk`` wrote, or the Parquet files of a
download.

Neither the package ``datasets`` nor a network is needed: the files are Arrow's and Parquet's, and say in the metadata
of their schemas which columns are images and what the numbers of a class column mean.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.importers._files import load_json, resolve_path, walk_files
from pipelines.data.importers._rows import SPLIT_OF_FILE, RowImporter, SourceRow
from pipelines.data.importing.importer import RejectedSample, SourceContents
from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.data.tars.inputs import input_requirements
from pipelines.data.tars.shards import parse_split_name, split_in_tar_name
from pipelines.errors import DataError
from vlmodel.locations import Location

_SPLITS, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
"""Files of ``save_to_disk``: in the folder of several splits, in that of one, and its features."""
_CACHED = "cache-"
"""Files that ``datasets`` keeps of what a program made of its rows begin with this."""
_METADATA = b"huggingface"
_ROWS_AT_ONCE = 64
_NO_CLASS = -1
"""The number of an unknown class, as in a test split."""

Feature = Mapping[str, Any]


@dataclass(frozen=True)
class _RowFile:
    """A file of rows: Parquet, or an Arrow stream or file.

    Attributes:
        split: of its rows.
    """

    path: Path
    split: str

    def schema(self) -> pa.Schema:
        if self.path.suffix == ".parquet":
            return pq.read_schema(self.path)
        return _open_arrow(self.path).schema

    def rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        if self.path.suffix == ".parquet":
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                    yield from batch.to_pylist()
            return
        opened = _open_arrow(self.path)
        batches = (
            opened
            if isinstance(opened, pa.ipc.RecordBatchStreamReader)
            else (opened.get_batch(number) for number in range(opened.num_record_batches))
        )
        for batch in batches:
            chosen = batch.select(columns)
            for start in range(0, chosen.num_rows, _ROWS_AT_ONCE):
                yield from chosen.slice(start, _ROWS_AT_ONCE).to_pylist()

    def features(self) -> dict[str, Feature]:
        """Return the data set's own description of its columns; {} if it has none."""
        schema = self.schema()
        stored = json.loads((schema.metadata or {}).get(_METADATA, b"{}")).get("info", {}).get("features")
        if stored is None and (info := self.path.with_name(_INFO)).is_file():
            stored = load_json(info).get("features")
        return dict(stored or {})


class Config(RowImporter):
    """Settings of an import of a Hugging Face data set with one row or several for each image. The split of a row is
    that of its file, by the names of folders and files.
    """

    kind: str = "hf_dataset"
    folder: Location
    """Folder that ``save_to_disk`` wrote or that a data set was downloaded into, or one Parquet file."""
    name: str = ""
    """Configuration of the data set, the name of a folder in it, where there are several."""
    image: str = ""
    """Column of the image; "" for the one that the data set says is an image."""
    label: str = ""
    """Column of the sample's class, which all its rows share; "" for the one that the data set says is a class."""
    captions: list[str] = ["caption", "captions", "text", "texts", "sentence", "sentences"]
    """Columns of captions."""
    split: str = ""
    """Column of the split (train, val or test), where it is not that of the files."""

    def fingerprint(self) -> str:
        return super(Config, self._with_inferred_columns()).fingerprint()

    def read(self) -> SourceContents:
        return super(Config, self._with_inferred_columns()).read()

    def _title(self) -> str:
        return self.folder.rstrip("/")

    def _base_folder(self) -> Path:
        root = resolve_path(self.folder)
        return root if root.is_dir() else root.parent

    def _source_files(self) -> list[Path]:
        return [file.path for file in self._find_files()]

    def _read_rows(self) -> Iterator[SourceRow | RejectedSample]:
        number = 0
        for file in self._find_files():
            try:
                features, present = file.features(), file.schema().names
                columns = self._require_columns(present)
                for cells in file.rows(columns):
                    place, number = f"{file.path.name}:{number}", number + 1
                    try:
                        plain = {name: _to_plain_cell(name, cell, features) for name, cell in cells.items()}
                    except SampleError as error:
                        yield RejectedSample(place, error.reason, error.detail)
                        continue
                    yield SourceRow(place, number - 1, {**plain, SPLIT_OF_FILE: file.split})
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DataError(f"{file.path} cannot be read ({error}); download it again, or save it again") from None

    def _with_inferred_columns(self) -> Config:
        """Return the settings with the columns that the data set's own description names."""
        files = self._find_files()
        features: dict[str, Feature] = {}
        for file in files:
            try:
                features |= file.features()
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DataError(f"{file.path} cannot be read ({error}); download it again, or save it again") from None
        image = self.image or self._choose_column(features, "Image", "image")
        label = self.label or self._choose_column(features, "ClassLabel", "label")
        present = files[0].schema().names
        if not image and "image" in present:
            image = "image"
        if not image and input_requirements(self.inputs).get("image"):
            raise DataError(
                f"{self.folder!r} says of none of its columns that it is an image; they are "
                f"{', '.join(map(repr, present))}: name it in source.image, or take texts alone by source.inputs=text"
            )
        return self.model_copy(update={"image": image, "label": label, "split": self.split or SPLIT_OF_FILE})

    def _choose_column(self, features: Mapping[str, Feature], kind: str, setting: str) -> str:
        """Choose the only column of a type, or among several the one with the setting's name; "" if there is none."""
        found = [name for name, feature in features.items() if _has_feature_type(feature, kind)]
        if len(found) > 1 and setting not in found:
            raise DataError(
                f"{self.folder!r} has several columns of {kind}: {', '.join(map(repr, found))}; name one in "
                f"source.{setting}"
            )
        return setting if setting in found else next(iter(found), "")

    def _find_files(self) -> list[_RowFile]:
        """List the files with their splits.

        Raises:
            DataError: there are none, or those of several configurations.
        """
        root = resolve_path(self.folder)
        if root.is_file():
            return [_RowFile(root, _split_of(root.name, root.name))]
        if not root.is_dir():
            raise DataError(f"folder {self.folder!r} does not exist; set source.folder to the folder of the data set")
        if self.name:
            root = root / self.name
            if not root.is_dir():
                known = ", ".join(sorted(path.name for path in root.parent.iterdir() if path.is_dir())) or "none"
                raise DataError(f"{self.folder!r} has no configuration {self.name!r} (source.name); it has {known}")
        if (root / _SPLITS).is_file():
            names = load_json(root / _SPLITS).get("splits", [])
            return [
                _RowFile(path, _split_of(f"{name}/", name))
                for name in names
                for path in _files_of_save_to_disk(root / name)
            ]
        if (root / _STATE).is_file():
            name = str(load_json(root / _STATE).get("_split") or "train")
            return [_RowFile(path, _split_of(f"{name}/", name)) for path in _files_of_save_to_disk(root)]
        found = (root / name for name, _, _ in walk_files(root, Counter()))
        paths = sorted(
            path
            for path in found
            if path.suffix in (".parquet", ".arrow") and path.is_file() and not path.name.startswith(_CACHED)
        )
        if not paths:
            raise DataError(
                f"{str(root)!r} holds no data set: neither what save_to_disk writes ({_SPLITS}, {_STATE}) nor Parquet "
                "files; set source.folder to the folder of the data set"
            )
        configurations = {path.relative_to(root).parts[0] for path in paths if len(path.relative_to(root).parts) > 1}
        named = sorted(name for name in configurations if name != "data" and parse_split_name(name) is None)
        if len(named) > 1:
            raise DataError(f"{self.folder!r} has several configurations: {', '.join(named)}; name one in source.name")
        return [_RowFile(path, _split_of(path.relative_to(root).as_posix(), path.name)) for path in paths]


def _files_of_save_to_disk(folder: Path) -> list[Path]:
    """List the files that ``save_to_disk`` wrote into a folder, in order."""
    return [folder / Path(file["filename"]).name for file in load_json(folder / _STATE).get("_data_files", [])]


def _split_of(path: str, name: str) -> str:
    """Find the split that a folder of a file's path, or else the file's name, says; train if none does."""
    folders = (parse_split_name(step) for step in reversed(path.split("/")[:-1]))
    return next((split for split in folders if split is not None), None) or split_in_tar_name(name) or "train"


def _open_arrow(path: Path) -> Any:
    """Open an Arrow stream, as ``save_to_disk`` writes it, or an Arrow file, mapped into memory."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path)))
    except pa.ArrowInvalid:
        return pa.ipc.open_file(pa.memory_map(str(path)))


def _has_feature_type(feature: Any, kind: str) -> bool:
    """Whether a feature of the data set has a type, or is a list of that type."""
    if isinstance(feature, list):
        return len(feature) == 1 and _has_feature_type(feature[0], kind)
    if not isinstance(feature, Mapping):
        return False
    return feature.get("_type") == kind or (kind == "Image" and _has_feature_type(feature.get("feature"), kind))


def _to_plain_cell(name: str, cell: Any, features: Mapping[str, Feature]) -> Any:
    """Replace a class's number by its name, and a list of one image by the image."""
    feature = features.get(name)
    if isinstance(cell, list) and _has_feature_type(feature, "Image"):
        if len(cell) > 1:
            raise SampleError(FaultReason.BAD_SCHEMA, f"{name} has {len(cell)} images, and a sample has one")
        return cell[0] if cell else None
    if not isinstance(feature, Mapping) or feature.get("_type") != "ClassLabel" or cell is None:
        return cell
    names = feature.get("names") or []
    if cell == _NO_CLASS:
        return None
    if not isinstance(cell, int) or not 0 <= cell < len(names):
        raise SampleError(FaultReason.BAD_SCHEMA, f"{name} = {cell!r} is none of its {len(names)} classes")
    return names[cell]
