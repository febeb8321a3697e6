"""Writes shards: numbered WebDataset tars of one split; the same samples give the same bytes."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pipelines.data.tars.errors import FaultReason, SampleError, missing_input_reason
from pipelines.data.tars.inputs import (
    PAIRS,
    TEXT,
    describe_known_extensions,
    input_of_extension,
    input_requirements,
    member_extension,
)
from pipelines.data.tars.sample import dump_texts
from pipelines.errors import DataError
from vlmodel.sample import SampleTexts

Split = Literal["train", "val", "test"]
SPLITS = ("train", "val", "test")

_SPLIT_WORDS = {
    "train": ("train", "training", "trainset", "trainval"),
    "val": ("val", "validation", "valid", "valset", "minival", "dev", "devel", "development", "devset"),
    "test": ("test", "testing", "testset", "testdev", "devtest", "eval", "evaluation"),
}
"""Words for splits in Hugging Face datasets, COCO, VQA and VOC."""

_SPLIT_OF = {word: split for split, words in _SPLIT_WORDS.items() for word in words}
# Letters up to the next digit, punctuation or capital letter: "val" of val2017, coco_val.0 and cocoVal.
_WORD = re.compile(r"[^\W\d_]+")
_CAPITAL_AFTER_SMALL = re.compile(r"(?<=[a-z])(?=[A-Z])")
# A dot would end the key for WebDataset; control characters, backslashes and empty, "." or ".." steps are unsafe in
# paths.
_KEY = re.compile(r"[^./\\\x00-\x1f\x7f]+(?:/[^./\\\x00-\x1f\x7f]+)*")
_TAR_BLOCK = 512

Member = tuple[str, bytes]
"""A file of a tar: its name and its bytes."""

Inputs = Mapping[str, tuple[bytes, str]]
"""Inputs by name: the bytes, and the extension of their file, in any case, with or without a leading dot."""


def parse_split_name(name: str) -> str | None:
    """Return the split, ``train``, ``val`` or ``test``, that a usual spelling means; None for another word."""
    return _SPLIT_OF.get(name.strip().lower())


def split_in_tar_name(filename: str) -> str | None:
    """Find the split that a tar's name contains as a whole word; None if it contains none.

    ``coco-val-000.tar``, ``val2017.tar`` and ``VALID.tar`` are of val; ``contest-000.tar`` is of none. A name with val
    and test (``test-dev``) is of test, by which no model is chosen.

    Raises:
        DataError: the name has train, and val or test too.
    """
    splits = {_SPLIT_OF[word] for word in _name_words(filename) if word in _SPLIT_OF}
    if "train" in splits and len(splits) > 1:
        others = " and ".join(sorted(splits - {"train"}))
        raise DataError(
            f"the name {filename!r} says train, and {others} too; rename the tar, or set its split in "
            f'data.index.splits, as in data.index.splits.train="{filename}"'
        )
    return next((split for split in ("test", "val", "train") if split in splits), None)


def shard_split(filename: str, patterns: Mapping[Split, Sequence[str]] | None = None) -> str:
    """Decide the split of a tar: by the patterns, else by its name (``split_in_tar_name``), else ``train``.

    Args:
        patterns: shell patterns of file names for each split (``IndexConfig.splits``).

    Raises:
        DataError: patterns of two splits match, or the name contradicts itself.
    """
    splits = _find_splits_by_pattern(filename, patterns or {})
    if len(splits) > 1:
        raise DataError(f"{filename!r} matches data.index.splits.{' and .'.join(splits)}; let one of them match")
    return splits[0] if splits else split_in_tar_name(filename) or "train"


def _find_splits_by_pattern(filename: str, patterns: Mapping[Split, Sequence[str]]) -> list[str]:
    names = (filename, filename.removesuffix(".tar"))
    return [split for split, of_split in patterns.items() if any(fnmatchcase(n, p) for p in of_split for n in names)]


def assign_shard_splits(
    filenames: Iterable[str], patterns: Mapping[Split, Sequence[str]] | None = None
) -> dict[str, str]:
    """Assign each tar of a data set its split, by ``shard_split``.

    Tars whose names have no split are of train where no tar is named train: ``part-000.tar`` beside ``val.tar``.

    Raises:
        DataError: some names have train and others no split, so that these may be any; two names differ only by a split
            inside a word (``cocotrain``, ``cocoval``); or as ``shard_split``.
    """
    splits = {name: shard_split(name, patterns) for name in filenames}
    by_pattern = {name for name in splits if _find_splits_by_pattern(name, patterns or {})}
    unnamed = sorted(name for name in splits if name not in by_pattern and split_in_tar_name(name) is None)
    train = sorted(name for name, split in splits.items() if split == "train" and name not in unnamed)
    if unnamed and train:
        raise DataError(
            f"{len(train):,} tars say train ({train[0]!r}, ...) and {len(unnamed):,} say no split ({unnamed[0]!r}, "
            "...), which may be of any; rename them, or set their split in data.index.splits, as in "
            f'data.index.splits.train="{unnamed[0]}" (a shell pattern)'
        )
    words = {word: name for name in unnamed for word in _name_words(name)}
    for word in words:
        for other in (word.replace("train", held_out) for held_out in ("val", "valid", "validation", "dev", "test")):
            if "train" in word and other in words:
                raise DataError(
                    f"{words[word]!r} and {words[other]!r} seem to be of two splits, but do not name them as words of "
                    "their own; rename them, or set their splits in data.index.splits, as in "
                    f'data.index.splits.val="{words[other]}" (a shell pattern)'
                )
    return splits


def _name_words(filename: str) -> list[str]:
    """Split a tar's name into words, in lower case."""
    return [word.lower() for word in _WORD.findall(_CAPITAL_AFTER_SMALL.sub(" ", filename.removesuffix(".tar")))]


def shard_name(split: str, number: int) -> str:
    """Return the file name of a shard of a split."""
    return f"{split}-{number:06d}.tar"


def make_sample_members(
    key: str,
    inputs: Inputs,
    texts: SampleTexts,
    extra: Mapping[str, Any] | None = None,
    wanted: Sequence[str] = PAIRS,
) -> list[Member]:
    """Make the tar members that hold one sample.

    Args:
        key: no dots, control characters or empty path steps; ``/`` is allowed inside.
        inputs: those that the sample has; their bytes are stored unchanged.
        extra: see ``dump_texts``; stored with texts only.
        wanted: what the sample must have and may have (``IndexConfig.inputs``); nothing else is stored.

    Raises:
        SampleError: UNSAFE_MEMBER for an invalid key; ``missing_input_reason`` for a missing input or text;
            EMPTY_MEMBER for an input without bytes; UNKNOWN_MEMBER for an extension of no medium; NO_INPUT where
            nothing would be stored; or what ``dump_texts`` raises.
    """
    if not _KEY.fullmatch(key):
        raise SampleError(FaultReason.UNSAFE_MEMBER, f"key {key!r} has a dot, control character or empty path step")
    has_text = bool(texts.present_kinds)
    stored = []
    for name, is_required in input_requirements(wanted).items():
        if name == TEXT and has_text:
            stored.append((f"{key}.json", dump_texts(texts, extra)))
        elif name == TEXT and is_required:
            raise SampleError(FaultReason.MISSING_TEXT, f"key {key!r} has no caption, no question and no class")
        elif name in inputs:
            stored.append(_make_input_member(key, name, *inputs[name]))
        elif is_required:
            raise SampleError(missing_input_reason(name), f"key {key!r} has no {name}")
    if not stored:
        raise SampleError(FaultReason.NO_INPUT, f"key {key!r} has none of {', '.join(wanted)}")
    return stored


def _make_input_member(key: str, name: str, data: bytes, extension: str) -> Member:
    if not data:
        raise SampleError(FaultReason.EMPTY_MEMBER, f"the {name} of key {key!r} has no bytes")
    ending = member_extension(name, extension.lower().removeprefix("."))
    found = input_of_extension(ending)
    if found is None or found.name != name:
        detail = f"the {name} of key {key!r} has extension {extension!r}, none of {describe_known_extensions(name)}"
        raise SampleError(FaultReason.UNKNOWN_MEMBER, detail)
    return f"{key}.{ending}", data


def size_in_tar(members: Iterable[Member]) -> int:
    """Calculate how many bytes members take in a tar, with their headers and padding."""
    return sum(_TAR_BLOCK - (-len(data) // _TAR_BLOCK) * _TAR_BLOCK for _, data in members)


def build_tar(samples: Iterable[Sequence[Member]]) -> bytes:
    """Build a tar in memory; equal members give equal bytes."""
    out = io.BytesIO()
    with _open_tar(file=out) as tar:
        for members in samples:
            _add_members(tar, members)
    return out.getvalue()


SHARD_BYTES = 256 << 20
"""Most bytes of a tar that is written: few enough for a worker to hold, many enough for reads at the disk's speed."""


class ShardWriter:
    """Writes the samples of one split to ``{folder}/{split}-000000.tar``, ``-000001.tar``, ...

    A shard has its name only when it is complete. Use as a context manager: an exception discards the unfinished shard.

    Args:
        folder: an existing local folder.
        split: one of ``SPLITS``.
        max_samples: samples per shard.
        max_bytes: size per shard; a larger single sample gets a shard of its own.
        inputs: what is written of each sample, the ``wanted`` of ``make_sample_members``.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        max_samples: int = 1000,
        max_bytes: int = SHARD_BYTES,
        inputs: Sequence[str] = PAIRS,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        self.folder, self.split = Path(folder), split
        self.max_samples, self.max_bytes, self.inputs = max_samples, max_bytes, tuple(inputs)
        self.shards: list[str] = []
        """Names of the finished shards."""
        self.samples = 0
        """Samples added so far, in all shards."""
        self._keys: set[str] = set()
        self._tar: tarfile.TarFile | None = None
        self._samples_in_shard = 0
        self._bytes_in_shard = 0

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str, inputs: Inputs, texts: SampleTexts, extra: Mapping[str, Any] | None = None) -> None:
        """Append one sample.

        Raises:
            SampleError: DUPLICATE_KEY where the split has the key already; errors of ``make_sample_members``; nothing
                is written then.
        """
        if key in self._keys:
            raise SampleError(FaultReason.DUPLICATE_KEY, f"key {key!r} is already in split {self.split!r}")
        members = make_sample_members(key, inputs, texts, extra, self.inputs)
        size = size_in_tar(members)
        if self._samples_in_shard and (
            self._samples_in_shard >= self.max_samples or self._bytes_in_shard + size > self.max_bytes
        ):
            self._finish_shard()
        if self._tar is None:
            self._tar = _open_tar(self._temporary_path())
        _add_members(self._tar, members)
        self._keys.add(key)
        self.samples += 1
        self._samples_in_shard += 1
        self._bytes_in_shard += size

    def close(self) -> None:
        """Finish the last shard."""
        if self._tar is not None:
            self._finish_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._tar is not None:
            self._tar.close()
            self._tar = None
            self._temporary_path().unlink()

    def _shard_name(self) -> str:
        return shard_name(self.split, len(self.shards))

    def _temporary_path(self) -> Path:
        return self.folder / f".{self._shard_name()}.partial"

    def _finish_shard(self) -> None:
        assert self._tar is not None
        self._tar.close()
        self._tar = None
        temporary, name = self._temporary_path(), self._shard_name()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self.folder / name)
        self.shards.append(name)
        self._samples_in_shard = self._bytes_in_shard = 0


def _open_tar(path: Path | None = None, file: io.BytesIO | None = None) -> tarfile.TarFile:
    return tarfile.open(path, "w", file, format=tarfile.PAX_FORMAT, encoding="utf-8")


def _add_members(tar: tarfile.TarFile, members: Iterable[Member]) -> None:
    for name, data in members:
        # TarInfo's defaults make the bytes reproducible: mtime 0, uid and gid 0, no user name.
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        tar.addfile(info, io.BytesIO(data))
