"""One shard, read once: its samples as rows of the index, its faults as rows of the quarantine, its hash.

Rules where a key appears more than once in a shard:

- Complete samples with the same key: the first one is kept, each later one is a DUPLICATE_KEY.
- Parts of one sample with other samples in between: SPLIT_KEY, and the sample is left out.
- The same member twice within one sample: DUPLICATE_KEY, and the sample is left out: which text belongs to which image
  cannot be known.

A sample at a break of the tar is part of the break, and has no row of its own, unless all of it is there.

Members of a key of which none is an image or a text are an UNKNOWN_MEMBER, a row for each name up to its last dot:
``photo.v1.jpg`` and ``photo.v1.txt`` have the key ``photo``, and the extensions ``v1.jpg`` and ``v1.txt``. Other
members that no sample is made of (``.cls`` beside an image, hidden files, files without extension) are counted.

Of a set of texts the images are passed over, if there are any, and of a set of images the texts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from zlib import crc32

import pyarrow as pa

from pipelines.data.index.validate import Verify, check_image
from pipelines.data.tars.errors import Reason, SampleError
from pipelines.data.tars.headers import Corruption, Kind, Member, is_hidden, leaves_folder, read_tar, split_name
from pipelines.data.tars.sample import (
    IMAGE_EXTENSIONS,
    Members,
    TextLimits,
    Texts,
    hash_texts,
    parse_group,
    parse_texts,
)

SAMPLE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("key_hash", pa.uint64()),
        ("split_hash", pa.uint64()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("image_format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("txt_offset", pa.int64()),
        ("txt_size", pa.int64()),
        ("captions", pa.int32()),
        ("questions", pa.int32()),
        ("sha256", pa.string()),
        ("texts_hash", pa.binary(16)),
        ("text_hashes", pa.list_(pa.uint32())),
    ]
)
"""``key_hash`` is the first 8 bytes of sha256(key), big-endian; ``split_hash``, by which validation samples are cut
off, is the same of the sample's group, or of its key where it has none; offsets and sizes are bytes of the tar. What
tells of an image, ``sha256`` too, is null where a sample is texts alone; where it is an image alone, the places of
texts and ``texts_hash`` are. ``texts_hash`` is ``hash_texts`` of the text members; ``text_hashes`` are CRC-32 of each
caption and question in small letters, to tell how many texts two splits share."""

FAULT_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("key", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

# What other loaders of such tars would unpickle. Nothing here does, and no one should be handed them.
_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt")
_MAX_TEXT_BYTES = 64 << 20
_EXTENSIONS_COUNTED = 50


@dataclass(frozen=True)
class Fault:
    """One row of the quarantine.

    Attributes:
        key: of the sample; None where there is no sample (a stray link, a shard that cannot be read).
        member: the member at fault, or the sample's first one.
        offset: where its data, or the damage, begins in the tar, in bytes.
    """

    key: str | None
    member: str | None
    offset: int | None
    reason: Reason
    detail: str

    def row(self, shard: str) -> dict[str, Any]:
        return {
            "shard": shard,
            "key": self.key,
            "member": self.member,
            "offset": self.offset,
            "reason": str(self.reason),
            "detail": self.detail,
        }


@dataclass(frozen=True)
class Scan:
    """What one shard holds.

    Attributes:
        samples: a table of ``SAMPLE_SCHEMA``, in tar order.
        faults: in tar order.
        worst_run: the most faults in a row.
        passed_over: members that no sample is made of: how many by extension (".cls"), "hidden" or "no extension".
        sha256: of the tar, in hexadecimal.
        size: of the tar in bytes.
    """

    samples: pa.Table
    faults: list[Fault]
    worst_run: int
    passed_over: dict[str, int]
    sha256: str
    size: int


def scan_tar(
    read: Callable[[int], bytes],
    *,
    max_pixels: int,
    max_image_bytes: int,
    verify: Verify = "decode",
    members: Members = "pairs",
    max_letters: int = TextLimits.letters,
    max_texts: int = TextLimits.texts,
) -> Scan:
    """Read one tar from start to end, once.

    Args:
        read: gives the next bytes, b"" at the end.
        members: what a sample must have.
        max_letters, max_texts: see ``TextLimits``.

    Raises:
        OSError: what ``read`` raises.
    """
    digest = hashlib.sha256()
    size = 0

    def read_and_hash(n: int) -> bytes:
        nonlocal size
        data = read(n)
        digest.update(data)
        size += len(data)
        return data

    def wanted(name: str, n: int) -> bool:
        extension = (split_name(name) or ("", ""))[1]
        if extension in IMAGE_EXTENSIONS:
            return check.images and n <= max_image_bytes
        return check.texts and n <= _MAX_TEXT_BYTES * _is_text(extension)

    check = _Check(
        max_pixels,
        max_image_bytes,
        verify,
        images=members != "texts",
        texts=members != "images",
        limits=TextLimits(max_letters, max_texts),
    )
    grouping = _Grouping(check)
    for item in read_tar(read_and_hash, wanted):
        grouping.take_break(item) if isinstance(item, Corruption) else grouping.take(item)
    grouping.close("end")
    outcomes = grouping.outcomes
    rows = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    faults = [outcome for outcome in outcomes if isinstance(outcome, Fault)]
    worst = run = 0
    for outcome in outcomes:
        run = run + 1 if isinstance(outcome, Fault) else 0
        worst = max(worst, run)
    table = pa.Table.from_pylist(rows, SAMPLE_SCHEMA)
    return Scan(table, faults, worst, dict(grouping.passed_over), digest.hexdigest(), size)


def hash_key(key: str) -> int:
    """The first 8 bytes of sha256(key) as a number."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8], "big")


_Row = dict[str, Any]


@dataclass(frozen=True)
class _Check:
    max_pixels: int
    max_image_bytes: int
    verify: Verify
    images: bool
    texts: bool
    limits: TextLimits


@dataclass
class _Group:
    """Adjacent members of one key."""

    key: str
    check: _Check
    members: dict[str, Member] = field(default_factory=dict)
    fault: Fault | None = None
    after_break: bool = False
    image: Member | None = None

    @property
    def extensions(self) -> frozenset[str]:
        return frozenset(self.members)

    @property
    def shape(self) -> frozenset[str]:
        """What it is made of, whatever the image's format."""
        return frozenset("image" if extension in IMAGE_EXTENSIONS else extension for extension in self.members)

    @property
    def unknown(self) -> bool:
        """Whether nothing of it is an image or a text."""
        return self.image is None and not any(map(_is_text, self.members))

    @property
    def complete(self) -> bool:
        has_image, has_text = self.image is not None, any(map(_is_text, self.members))
        return (has_image or not self.check.images) and (has_text or not self.check.texts)

    def add(self, extension: str, member: Member) -> None:
        problem = _member_problem(extension, member)
        if problem is None and extension in IMAGE_EXTENSIONS and self.image is not None:
            problem = Reason.DUPLICATE_KEY, f"two images for one key: {self.image.name!r} and {member.name!r}"
        if problem is not None and self.fault is None:
            self.fault = Fault(self.key, member.name, member.offset, *problem)
        if extension in IMAGE_EXTENSIONS and self.image is None:
            self.image = member
        self.members[extension] = member


@dataclass
class _Seen:
    place: int  # in the list of outcomes
    extensions: frozenset[str]
    offset: int
    split: bool = False


class _Grouping:
    """Makes of the members of a tar, in its order, a row or a fault for each sample."""

    def __init__(self, check: _Check) -> None:
        self.check = check
        self.outcomes: list[_Row | Fault] = []
        self.seen: dict[str, _Seen] = {}
        self.group: _Group | None = None
        self.after_break = False
        # The shape of the first whole sample: what a sample of this shard looks like.
        self.usual: frozenset[str] | None = None
        self.passed_over: Counter[str] = Counter()

    def take(self, member: Member) -> None:
        if member.kind is Kind.DIRECTORY and not leaves_folder(member.name):
            return
        named = split_name(member.name)
        if named is None:
            if (problem := _member_problem("", member)) is not None:
                self.close("next")
                self.outcomes.append(Fault(None, member.name, member.offset, *problem))
            else:
                self._pass_over("hidden" if is_hidden(member.name) else "no extension")
            return
        key, extension = named
        if extension not in IMAGE_EXTENSIONS and not _is_text(extension):
            self._pass_over(f".{extension}")
        group = self.group
        if group is None or group.key != key or (extension in group.members and (group.complete or group.unknown)):
            self.close("next")
            group = self.group = _Group(key, self.check, after_break=self.after_break)
            self.after_break = False
        group.add(extension, member)

    def take_break(self, broken: Corruption) -> None:
        lost = self.close("break")
        key = (split_name(broken.member) or (lost,))[0] if broken.member else lost
        self.outcomes.append(Fault(key, broken.member, broken.offset, broken.reason, broken.detail))
        self.after_break = True

    def close(self, what_follows: Literal["next", "break", "end"]) -> str | None:
        """Judge the current group; the key, if it was lost to a break."""
        group, self.group = self.group, None
        if group is None:
            return None
        if what_follows == "break" or group.after_break:
            usual = self.usual or group.shape
            if not group.complete or not group.shape >= usual:
                return group.key
        if group.unknown and group.fault is None:
            self.outcomes.extend(_unknown(group))
            return None
        outcome = self._repeated(group) if group.key in self.seen else _judge(group, self.check)
        if outcome is None:
            return None
        if self.usual is None and isinstance(outcome, dict):
            self.usual = group.shape
        if group.key not in self.seen:
            first = next(iter(group.members.values()))
            self.seen[group.key] = _Seen(len(self.outcomes), group.extensions, first.offset)
        self.outcomes.append(outcome)
        return None

    def _pass_over(self, kind: str) -> None:
        is_counted = kind in self.passed_over or len(self.passed_over) < _EXTENSIONS_COUNTED
        self.passed_over[kind if is_counted else "other extensions"] += 1

    def _repeated(self, group: _Group) -> Fault | None:
        seen = self.seen[group.key]
        first = next(iter(group.members.values()))
        if seen.extensions & group.extensions:
            return group.fault or Fault(
                group.key,
                first.name,
                first.offset,
                Reason.DUPLICATE_KEY,
                f"the key was used before, at byte {seen.offset}; the first dot of a base name ends the key",
            )
        # The other part of a sample that was judged too early: the two together make one fault.
        seen.extensions |= group.extensions
        if not seen.split:
            detail = f"members of one key are not adjacent: at byte {seen.offset} and at byte {first.offset}"
            fault = group.fault or Fault(group.key, first.name, first.offset, Reason.SPLIT_KEY, detail)
            earlier = self.outcomes[seen.place]
            if not (isinstance(earlier, Fault) and earlier.reason is Reason.UNSAFE_MEMBER):
                self.outcomes[seen.place] = fault
            seen.split = True
        return None


def _unknown(group: _Group) -> list[Fault]:
    """A fault for each name up to its last dot."""
    first: dict[str, tuple[str, Member]] = {}
    for extension, member in group.members.items():
        first.setdefault(member.name.rpartition(".")[0], (extension, member))
    faults = []
    for extension, member in first.values():
        detail = f"no image and no text by its extension, .{extension}"
        if "." in extension:
            detail += f", as the first dot of a base name ends the key ({group.key!r}); use no other dots in names"
        faults.append(Fault(group.key, member.name, member.offset, Reason.UNKNOWN_MEMBER, detail))
    return faults


def _judge(group: _Group, check: _Check) -> _Row | Fault:
    first = next(iter(group.members.values()))
    if group.fault is not None:
        return group.fault

    def fault(member: Member, reason: Reason, detail: str) -> Fault:
        return Fault(group.key, member.name, member.offset, reason, detail)

    image = group.image if check.images else None
    json, txt = (group.members.get(kind) if check.texts else None for kind in ("json", "txt"))
    listing = ", ".join(f".{extension}" for extension in group.members)
    if image is None and check.images:
        known = ", ".join(IMAGE_EXTENSIONS)
        return fault(first, Reason.MISSING_IMAGE, f"there is only {listing}; an image ends in one of {known}")
    if json is None and txt is None and check.texts:
        return fault(image or first, Reason.MISSING_TEXT, f"there is only {listing}; texts are in .json or .txt")
    for member in (image, json, txt):
        if member is not None and member.size == 0:
            return fault(member, Reason.EMPTY_MEMBER, f"{member.name!r} has no bytes")
    if image is not None and image.data is None:
        limit = f"data.index.max_image_bytes allows {check.max_image_bytes}"
        return fault(image, Reason.IMAGE_TOO_LARGE, f"a file of {image.size} bytes; {limit}")
    for member in (json, txt):
        if member is not None and member.data is None:
            detail = f"a text of {member.size} bytes; at most {_MAX_TEXT_BYTES} are read"
            return fault(member, Reason.BAD_SCHEMA, detail)
    about_image: _Row = {}
    if image is not None and image.data is not None:
        try:
            facts = check_image(image.data, check.max_pixels, check.verify)
        except SampleError as error:
            return fault(image, error.reason, error.detail)
        about_image = {
            "image_offset": image.offset,
            "image_size": image.size,
            "image_format": facts.format,
            "width": facts.width,
            "height": facts.height,
            "sha256": hashlib.sha256(image.data).hexdigest(),
        }
    texts = Texts((), ())
    if check.texts:
        try:
            texts = parse_texts(json.data if json else None, txt.data if txt else None, check.limits)
        except SampleError as error:
            return fault(_text_at_fault(error, json, txt) or first, error.reason, error.detail)
    of_group = parse_group(json.data) if json else None
    return {
        "key": group.key,
        "key_hash": hash_key(group.key),
        "split_hash": hash_key(group.key if of_group is None else of_group),
        **about_image,
        "json_offset": json.offset if json else None,
        "json_size": json.size if json else None,
        "txt_offset": txt.offset if txt else None,
        "txt_size": txt.size if txt else None,
        "captions": len(texts.captions),
        "questions": len(texts.questions),
        "texts_hash": hash_texts(json.data if json else None, txt.data if txt else None) if check.texts else None,
        "text_hashes": [crc32(text.lower().encode()) for text in texts.captions]
        + [crc32(question.question.lower().encode()) for question in texts.questions],
    }


def _text_at_fault(error: SampleError, json: Member | None, txt: Member | None) -> Member | None:
    return txt if json is None or error.detail.startswith(".txt") else json


def _member_problem(extension: str, member: Member) -> tuple[Reason, str] | None:
    if not member.utf8:
        return Reason.BAD_UTF8, "the member's name is not UTF-8"
    if member.kind is Kind.LINK:
        return Reason.UNSAFE_MEMBER, "a link; store the file itself"
    if leaves_folder(member.name):
        return Reason.UNSAFE_MEMBER, "an absolute path or one with '..'"
    if member.kind is Kind.SPECIAL:
        return Reason.UNSAFE_MEMBER, "a device, a pipe, a sparse file or an unknown type of member"
    if extension.rpartition(".")[2] in _PICKLES:
        return Reason.UNSAFE_MEMBER, "a pickle, which executes code when it is loaded; store the data as JSON"
    return None


def _is_text(extension: str) -> bool:
    return extension in ("json", "txt")


def fault_table(shard: str, faults: Sequence[Fault]) -> pa.Table:
    """The faults of one shard as a table of ``FAULT_SCHEMA``."""
    return pa.Table.from_pylist([fault.row(shard) for fault in faults], FAULT_SCHEMA)
