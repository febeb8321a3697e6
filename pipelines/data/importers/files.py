"""Imports a folder of files of one input, such as sounds, videos or series; their paths may tell class, group and
split.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.data.importers._files import (
    class_of_path,
    fingerprint_files,
    key_of_image,
    source_folder,
    split_of_path,
    walk_files,
)
from pipelines.data.importers._inputs import read_input
from pipelines.data.importing.importer import Importer, RejectedSample, SourceContents, SourceSample
from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.data.tars.inputs import (
    TEXT,
    InputNames,
    describe_known_extensions,
    input_of_extension,
    input_requirements,
    member_extension,
)
from pipelines.data.tars.sample import GROUP
from pipelines.data.tars.shards import parse_split_name
from pipelines.errors import DataError
from vlmodel.locations import Location
from vlmodel.sample import SampleTexts

_GROUPS = ("class", "group", "split")


class Config(Importer):
    """Settings of an import of files. Each file of the input's medium becomes a sample, whose key is the file's path in
    the folder, without the extension.
    """

    kind: str = "files"
    inputs: InputNames = ("audio",)
    """The one input that the files are, named after its medium (audio, video, series) or otherwise, as ["imu"]; and
    text, for the class, where ``classes`` or ``pattern`` gives one, which is then the default."""
    folder: Location
    """Folder of the files, at any depth."""
    split: Literal["train", "val", "test", "folder"] = "train"
    """Split of all of them; "folder" reads it in the first step of their paths, as in ``test/dog/1.wav``."""
    classes: Literal["", "folder"] = ""
    """"folder" makes the name of the folder in which a file lies its class."""
    pattern: str = ""
    r"""Regular expression that is searched in the paths, and whose named groups say what a file is:
    ``(?P<class>\d)_(?P<group>\w+)_\d+\.wav`` takes class and speaker from ``7_jackson_12.wav``. The groups are class,
    group (samples of one are in the same split where a hash decides) and split. Other files are left out."""
    test_fraction: float = Field(default=0, ge=0, lt=1)
    """Share of the train samples that becomes split test, by the hash of their group, or else of their key."""

    @field_validator("pattern")
    @classmethod
    def _check_pattern_groups(cls, pattern: str) -> str:
        try:
            names = re.compile(pattern.replace("(?P<class>", "(?P<class_>")).groupindex
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        if pattern and (unknown := {name.rstrip("_") for name in names} - set(_GROUPS) or not names):
            raise ValueError(f"{pattern!r} has the groups {unknown or 'none'}; name some of {', '.join(_GROUPS)}")
        return pattern

    @model_validator(mode="before")
    @classmethod
    def _require_texts_for_classes(cls, settings: Any) -> Any:
        if not isinstance(settings, dict) or not (
            settings.get("classes") or "(?P<class>" in settings.get("pattern", "")
        ):
            return settings
        return {"inputs": ("audio", TEXT), **settings}

    @model_validator(mode="after")
    def _require_one_input(self) -> Config:
        if len(input_requirements(self.inputs).keys() - {TEXT}) != 1 or "image" in input_requirements(self.inputs):
            raise ValueError(
                f"inputs = {list(self.inputs)}: name the one input that the files are, as audio, video, series or imu, "
                "and text for a class (source.kind=folder reads images, source.kind=table several inputs)"
            )
        return self

    @property
    def name(self) -> str:
        """The name of the input that the files hold."""
        return next(iter(input_requirements(self.inputs).keys() - {TEXT}))

    def fingerprint(self) -> str:
        root = source_folder(self.folder)
        return fingerprint_files(root, [root / path for path in self._list_paths(Counter())])

    def read(self) -> SourceContents:
        skipped_counts: Counter[str] = Counter()
        paths = self._list_paths(skipped_counts)
        if not paths:
            raise DataError(
                f"{self.folder} has no file of the input {self.name!r}: {describe_known_extensions(self.name)}"
            )
        return SourceContents(len(paths), self._read_samples(paths), lambda: skipped_counts)

    def _list_paths(self, skipped_counts: Counter[str]) -> list[str]:
        found = []
        for path, _, _ in walk_files(source_folder(self.folder), skipped_counts):
            extension = posixpath.splitext(path)[1].removeprefix(".").lower()
            of_input = input_of_extension(member_extension(self.name, extension)) if extension else None
            if of_input is not None and of_input.name == self.name:
                found.append(path)
            else:
                skipped_counts["other files"] += 1
        return sorted(found)

    def _read_samples(self, paths: list[str]) -> Iterator[SourceSample | RejectedSample]:
        root = source_folder(self.folder)
        for path in paths:
            try:
                said = self._match_path(path)
                split, label = said.get("split") or split_of_path(path, self.split), said.get("class")
                if self.classes:
                    label = class_of_path(path)
                inputs = {self.name: read_input(root, self.name, path)}
            except SampleError as error:
                yield RejectedSample(key_of_image(path), error.reason, error.detail)
            else:
                extra = {GROUP: said["group"]} if "group" in said else None
                yield SourceSample(split, key_of_image(path), inputs, SampleTexts(label=label), extra)

    def _match_path(self, path: str) -> dict[str, str]:
        """Match a path against the pattern; returns the text that each named group matches."""
        if not self.pattern:
            return {}
        match = re.search(self.pattern.replace("(?P<class>", "(?P<class_>"), path)
        if match is None:
            raise SampleError(FaultReason.MISSING_TEXT, f"{path!r} does not match source.pattern={self.pattern!r}")
        said = {name.rstrip("_"): value for name, value in match.groupdict().items() if value and value.strip()}
        if "split" in said:
            if (split := parse_split_name(said["split"])) is None:
                raise SampleError(FaultReason.BAD_SCHEMA, f"{path!r}: {said['split']!r} is none of train, val and test")
            said["split"] = split
        return said
