"""Imports series of the UEA archive (Bagnall et al. 2018, arXiv:1811.00075): NAME_TRAIN.ts and NAME_TEST.ts."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import Field, field_validator

from pipelines.data.importers._files import fingerprint_files, source_folder, to_valid_key
from pipelines.data.importing.importer import Importer, RejectedSample, SourceContents, SourceSample
from pipelines.data.tars.errors import FaultReason, SampleError, medium_reason
from pipelines.data.tars.inputs import TEXT, InputNames
from pipelines.errors import DataError
from vlmodel.locations import Location
from vlmodel.sample import SampleTexts

_SPLITS = {"_TRAIN.ts": "train", "_TEST.ts": "test"}


class Config(Importer):
    """Settings of an import of a UEA data set. Each line becomes a sample with a series and its class."""

    kind: str = "uea"
    inputs: InputNames = ("series", TEXT)
    """The series and the class."""
    folder: Location
    """Folder with NAME_TRAIN.ts, NAME_TEST.ts or both."""
    test_fraction: float = Field(default=0, ge=0, lt=1)
    """Share of the train samples that becomes split test, where there is no NAME_TEST.ts."""

    @field_validator("inputs")
    @classmethod
    def _require_series_and_class(cls, inputs: tuple[str, ...]) -> tuple[str, ...]:
        if set(inputs) != {"series", TEXT}:
            raise ValueError(f"{list(inputs)}: these files hold a series and a class; leave inputs as it is")
        return inputs

    def fingerprint(self) -> str:
        return fingerprint_files(source_folder(self.folder), self._find_files())

    def read(self) -> SourceContents:
        lines = {file: _read_data_lines(file) for file in self._find_files()}
        return SourceContents(sum(map(len, lines.values())), _iterate_samples(lines))

    def _find_files(self) -> list[Path]:
        root = source_folder(self.folder)
        files = sorted(file for ending in _SPLITS for file in root.glob(f"*{ending}"))
        if not files:
            raise DataError(f"{root} has no file of a name that ends in {' or '.join(_SPLITS)}; name their folder")
        return files


def _read_data_lines(file: Path) -> list[str]:
    """Yield the lines after ``@data`` in a ``.ts`` file.

    Raises:
        DataError: there are none, or what these are is not read here.
    """
    head, data, rest = file.read_text(encoding="utf-8").partition("\n@data")
    settings = dict(line.lower().split(None, 1) for line in head.splitlines() if len(line.split(None, 1)) == 2)
    if not data or not settings.get("@classlabel", "false").startswith("true"):
        raise DataError(f"{file} has no @data with @classLabel true; series of classes are read")
    if settings.get("@timestamps", "false").startswith("true"):
        raise DataError(f"{file} has @timeStamps true; series at equal distances are read")
    return [line for line in rest.splitlines() if line.strip()]


def _iterate_samples(lines_of: dict[Path, list[str]]) -> Iterator[SourceSample | RejectedSample]:
    for file, lines in lines_of.items():
        split = next(split for ending, split in _SPLITS.items() if file.name.endswith(ending))
        for number, line in enumerate(lines):
            key = to_valid_key(f"{file.stem}-{number:06d}")
            try:
                x_TC, label = _parse_series_line(line)
            except SampleError as error:
                yield RejectedSample(key, error.reason, error.detail)
                continue
            out = io.BytesIO()
            np.save(out, x_TC, allow_pickle=False)
            yield SourceSample(split, key, {"series": (out.getvalue(), "npy")}, SampleTexts(label=label))


def _parse_series_line(line: str) -> tuple[np.ndarray, str]:
    """Parse a line to a series (T, C) and its class: channels are separated by colons, and the class comes last."""
    *channels, label = (part.strip() for part in line.split(":"))
    if not channels or not label:
        raise SampleError(FaultReason.MISSING_TEXT, f"{line:.40}... has no class behind its channels")
    if any(cell.strip() in ("?", "NaN", "nan") for channel in channels for cell in channel.split(",")):
        raise SampleError(medium_reason("not_finite", "series"), "a value of the series is missing (?)")
    try:
        columns = [np.array(channel.split(","), np.float32) for channel in channels]
    except ValueError as error:
        raise SampleError(
            medium_reason("wrong_column", "series"), f"a channel has what is no number: {error}"
        ) from None
    if len({len(column) for column in columns}) != 1:
        lengths = ", ".join(str(len(column)) for column in columns)
        raise SampleError(
            medium_reason("wrong_shape", "series"), f"its channels have {lengths} values; all need as many"
        )
    return np.stack(columns, 1), label
