"""Imports conversations about pictures, or of texts alone: LLaVA's JSON, ShareGPT, ms-swift's JSON lines, and
``messages`` in Parquet as TRL and Hugging Face data sets have them (``_turns.py``). All records of one picture become
one sample.

Of a conversation with a broken turn what is before it is imported, and the turn is a reject with its reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from pipelines.data.importers._files import fingerprint_files, key_of_image, resolve_path, to_valid_key
from pipelines.data.importers._images import (
    NoImages,
    SourceImages,
    extension_of_image_bytes,
    open_source_images,
)
from pipelines.data.importers._records import iterate_records
from pipelines.data.importers._turns import Picture, parse_conversation
from pipelines.data.importing.importer import Importer, RejectedSample, SourceContents, SourceSample
from pipelines.data.tars.errors import FaultReason, SampleError, missing_input_reason
from pipelines.data.tars.inputs import TEXT, input_requirements
from pipelines.data.tars.shards import parse_split_name
from pipelines.errors import DataError
from vlmodel.conversation import Conversation
from vlmodel.locations import Location
from vlmodel.sample import SampleTexts


class Config(Importer):
    """Settings of an import of conversations. The task ``converse`` learns each turn of the assistant, given the turns
    before it.
    """

    kind: str = "conversations"
    file: Location
    """The records: .json (a list), .jsonl, .ndjson or .parquet."""
    images: Location = ""
    """Folder or tar that the paths of pictures are relative to, itself relative to the file's folder; empty for that
    folder."""
    messages: str = ""
    """Field of the turns; empty for the usual names: messages, conversations, prompt and completion, query and
    response."""
    split: str = "split"
    """Field of the split (train, val or test). Without it a record is of split train."""
    id: str = "id"
    """Field of a record's identifier, which is the key of a conversation without a picture."""
    pictures: list[str] = ["image"]
    """Inputs that the first, the second, ... picture of a conversation become. One with more pictures is left out."""

    @model_validator(mode="after")
    def _check_inputs(self) -> Self:
        needed = input_requirements(self.inputs)
        if TEXT not in needed:
            raise ValueError(f"inputs = {list(self.inputs)} has no text; a conversation is one: add 'text'")
        if others := needed.keys() - {TEXT, *self.pictures}:
            raise ValueError(f"inputs = {list(self.inputs)} names {min(others)!r}, which source.pictures does not")
        if len(set(self.pictures)) < len(self.pictures):
            raise ValueError(f"pictures = {self.pictures} names an input twice")
        return self

    def fingerprint(self) -> str:
        file = self._records_file()
        return fingerprint_files(file.parent, [file, *self._open_images(file).files()])

    def read(self) -> SourceContents:
        file = self._records_file()
        images = self._open_images(file)
        samples, rejects = self._group_by_sample(file, images)
        splits = {sample.split for sample in samples.values()}
        read = self._read_samples(file, images, samples, rejects)
        return SourceContents(len(samples), read, lambda: images.count_skipped_files([file]), splits)

    def _records_file(self) -> Path:
        path = resolve_path(self.file)
        if not path.is_file():
            problem = "is no file" if path.exists() else "does not exist"
            raise DataError(f"{self.file!r} {problem}; set source.file to the file of the conversations")
        return path

    def _open_images(self, file: Path) -> SourceImages | NoImages:
        wanted = [name for name in input_requirements(self.inputs) if name != TEXT]
        return open_source_images(["image"] if wanted else [], resolve_path(self.images, file.parent))

    def _group_by_sample(
        self, file: Path, images: SourceImages | NoImages
    ) -> tuple[dict[str, _ConversationsOfSample], list[RejectedSample]]:
        """Group the conversations by their pictures, in the order of first appearance; the bytes of pictures are not
        kept in memory.
        """
        samples: dict[str, _ConversationsOfSample] = {}
        rejects = []
        for number, record in iterate_records(file):
            place = f"{file.name}:{number}"
            try:
                if isinstance(record, SampleError):
                    raise record
                found = parse_conversation(record, self.messages)
                if found.broken is not None:
                    turn, error = found.broken
                    rejects.append(RejectedSample(f"{place}#{turn}", error.reason, error.detail))
                pictures = self._pictures_by_input(found.pictures)
                sample = self._make_sample(number, record, pictures, images, file)
                identity = "\0".join(sample.identities) or f"{number}"
                same = samples.setdefault(identity, sample)
                if same.split != sample.split:
                    detail = f"its picture is in split {same.split!r} by another record, {sample.split!r} by this one"
                    raise SampleError(FaultReason.BAD_SCHEMA, detail)
            except SampleError as error:
                rejects.append(RejectedSample(place, error.reason, error.detail))
            else:
                same.conversations.append(found.turns)
        return samples, rejects

    def _pictures_by_input(self, pictures: tuple[Picture, ...]) -> dict[str, Picture]:
        """Select the pictures of a conversation that are imported, by the names of their inputs."""
        if len(pictures) > len(self.pictures):
            detail = f"the conversation has {len(pictures)} pictures, and source.pictures = {self.pictures}"
            raise SampleError(FaultReason.UNMATCHED_INPUT, f"{detail} names {len(self.pictures)}")
        by_input = dict(zip(self.pictures, pictures, strict=False))
        for name, is_required in input_requirements(self.inputs).items():
            if is_required and name not in by_input and name != TEXT:
                raise SampleError(missing_input_reason(name), f"the conversation has {len(pictures)} pictures")
        return {name: picture for name, picture in by_input.items() if self.imports_input(name)}

    def _make_sample(
        self,
        number: int,
        record: Mapping[str, Any],
        pictures: dict[str, Picture],
        images: SourceImages | NoImages,
        file: Path,
    ) -> _ConversationsOfSample:
        identities, first = [], ""
        for picture in pictures.values():
            if isinstance(picture, bytes):
                name = identity = hashlib.sha256(picture).hexdigest()[:32]
            else:
                assert isinstance(images, SourceImages)
                name, identity = key_of_image(picture), images.image_identity(picture)
            identities.append(identity)
            first = first or name
        if not first:
            named = record.get(self.id)
            is_name = isinstance(named, str | int) and not isinstance(named, bool) and str(named).strip()
            first = to_valid_key(str(named).strip()) if is_name else f"{file.stem}-{number:08d}"
        paths = {name: picture if isinstance(picture, str) else None for name, picture in pictures.items()}
        return _ConversationsOfSample(number, self._split_of(record), first, paths, tuple(identities))

    def _split_of(self, record: Mapping[str, Any]) -> str:
        if (value := record.get(self.split)) in (None, ""):
            return "train"
        if not isinstance(value, str) or (split := parse_split_name(value)) is None:
            raise SampleError(FaultReason.BAD_SCHEMA, f"split {value!r:.80} is none of train, val and test")
        return split

    def _read_samples(
        self,
        file: Path,
        images: SourceImages | NoImages,
        samples: Mapping[str, _ConversationsOfSample],
        rejects: list[RejectedSample],
    ) -> Iterator[SourceSample | RejectedSample]:
        yield from rejects
        of_record = {sample.number: sample for sample in samples.values()}
        if all(None not in sample.paths.values() for sample in samples.values()):
            for sample in of_record.values():
                yield _read_sample(sample, {}, images)
            return
        # The bytes of pictures lie in the file, and are read one record after the other.
        for number, record in iterate_records(file):
            if (wanted := of_record.get(number)) is not None and not isinstance(record, SampleError):
                pictures = parse_conversation(record, self.messages).pictures
                yield _read_sample(wanted, dict(zip(self.pictures, pictures, strict=False)), images)


@dataclass
class _ConversationsOfSample:
    """The conversations about the same pictures, which become one sample.

    Attributes:
        number: of its first record.
        paths: of its pictures by their inputs; None for one whose bytes are in the record.
        identities: of its pictures.
    """

    number: int
    split: str
    key: str
    paths: dict[str, str | None]
    identities: tuple[str, ...]
    conversations: list[Conversation] = field(default_factory=list)


def _read_sample(
    sample: _ConversationsOfSample, pictures: Mapping[str, Picture], images: SourceImages | NoImages
) -> SourceSample | RejectedSample:
    inputs: dict[str, tuple[bytes, str]] = {}
    try:
        for name, path in sample.paths.items():
            data = pictures[name] if path is None else None
            if isinstance(data, bytes):
                inputs[name] = data, extension_of_image_bytes(data)
            elif path is not None:
                read, extension = images.read(path)
                assert read is not None
                inputs[name] = read, extension or ""
    except SampleError as error:
        return RejectedSample(sample.key, error.reason, error.detail)
    texts = SampleTexts(conversations=tuple(sample.conversations))
    return SourceSample(sample.split, sample.key, inputs, texts)
