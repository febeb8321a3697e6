"""Whether the members of one key are a valid sample: its row of the index, or its fault."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import pyarrow as pa

from pipelines.data.index.fault import Fault
from pipelines.data.index.validate import Verify, check_image
from pipelines.data.tars.errors import Reason, SampleError
from pipelines.data.tars.headers import Kind, Member
from pipelines.data.tars.member_names import leaves_folder
from pipelines.data.tars.sample import IMAGE_EXTENSIONS, TextLimits, hash_texts, parse_group, parse_texts
from vlmodel.sample import Texts

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
"""Offsets and sizes are bytes of the tar; ``sha256`` is that of the image. ``key_hash`` is the first 8 bytes of
sha256(key), big-endian; ``split_hash``, by which validation samples are chosen, is the same of the sample's group, or
of its key where it has none. ``texts_hash`` is ``hash_texts`` of the text members; ``text_hashes`` are CRC-32 of each
caption and question in lower case, to count the texts that two splits share. The columns about an image are null for
texts alone; the offsets and sizes of texts, and ``texts_hash``, for an image alone."""

TEXT_EXTENSIONS = ("json", "txt")
MAX_TEXT_BYTES = 64 << 20
# Other loaders of such tars would unpickle these.
_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt")

Row = dict[str, Any]


@dataclass(frozen=True)
class SampleRules:
    """What makes a sample valid; ``images`` and ``texts`` tell whether it must have some."""

    max_pixels: int
    max_image_bytes: int
    verify: Verify
    images: bool
    texts: bool
    limits: TextLimits

    def reads(self, extension: str, size: int) -> bool:
        """Whether the data of such a member are read."""
        if extension in IMAGE_EXTENSIONS:
            return self.images and size <= self.max_image_bytes
        return extension in TEXT_EXTENSIONS and self.texts and size <= MAX_TEXT_BYTES


def check_sample(key: str, members: Mapping[str, Member], image: Member | None, rules: SampleRules) -> Row | Fault:
    """The row of ``SAMPLE_SCHEMA`` of a sample, or what is wrong with it.

    Args:
        members: all members of the key, by extension.
        image: the first image among them.
    """
    first = next(iter(members.values()))

    def fault(member: Member, reason: Reason, detail: str) -> Fault:
        return Fault(key, member.name, member.offset, reason, detail)

    image = image if rules.images else None
    json, txt = (members.get(kind) if rules.texts else None for kind in TEXT_EXTENSIONS)
    listing = ", ".join(f".{extension}" for extension in members)
    if image is None and rules.images:
        known = ", ".join(IMAGE_EXTENSIONS)
        return fault(first, Reason.MISSING_IMAGE, f"there is only {listing}; an image ends in one of {known}")
    if json is None and txt is None and rules.texts:
        return fault(image or first, Reason.MISSING_TEXT, f"there is only {listing}; texts are in .json or .txt")
    for member in (image, json, txt):
        if member is not None and member.size == 0:
            return fault(member, Reason.EMPTY_MEMBER, f"{member.name!r} has no bytes")
    if image is not None and image.data is None:
        limit = f"data.index.max_image_bytes allows {rules.max_image_bytes}"
        return fault(image, Reason.IMAGE_TOO_LARGE, f"a file of {image.size} bytes; {limit}")
    for member in (json, txt):
        if member is not None and member.data is None:
            return fault(member, Reason.BAD_SCHEMA, f"a text of {member.size} bytes; at most {MAX_TEXT_BYTES} are read")
    try:
        image_columns = _image_columns(image, rules) if image is not None else {}
    except SampleError as error:
        return fault(image or first, error.reason, error.detail)
    json_bytes, txt_bytes = (member.data if member is not None else None for member in (json, txt))
    try:
        text_columns = _text_columns(json_bytes, txt_bytes, rules.limits) if rules.texts else _NO_TEXTS
    except SampleError as error:
        at_fault = txt if json is None or error.detail.startswith(".txt") else json
        return fault(at_fault or first, error.reason, error.detail)
    group = parse_group(json_bytes)
    return {
        "key": key,
        "key_hash": hash_key(key),
        "split_hash": hash_key(key if group is None else group),
        **image_columns,
        "json_offset": json.offset if json else None,
        "json_size": json.size if json else None,
        "txt_offset": txt.offset if txt else None,
        "txt_size": txt.size if txt else None,
        **text_columns,
    }


def member_problem(extension: str, member: Member) -> tuple[Reason, str] | None:
    """What is wrong with a member whatever its sample; None where nothing is."""
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


def hash_key(key: str) -> int:
    """The first 8 bytes of sha256(key) as a number."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8], "big")


def _image_columns(image: Member, rules: SampleRules) -> Row:
    assert image.data is not None
    facts = check_image(image.data, rules.max_pixels, rules.verify)
    return {
        "image_offset": image.offset,
        "image_size": image.size,
        "image_format": facts.format,
        "width": facts.width,
        "height": facts.height,
        "sha256": hashlib.sha256(image.data).hexdigest(),
    }


def _text_columns(json: bytes | None, txt: bytes | None, limits: TextLimits) -> Row:
    texts: Texts = parse_texts(json, txt, limits)
    all_texts = [*texts.captions, *(question.question for question in texts.questions)]
    return {
        "captions": len(texts.captions),
        "questions": len(texts.questions),
        "texts_hash": hash_texts(json, txt),
        "text_hashes": [crc32(text.lower().encode()) for text in all_texts],
    }


_NO_TEXTS: Row = {"captions": 0, "questions": 0, "texts_hash": None, "text_hashes": []}
