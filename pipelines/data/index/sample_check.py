"""Checks whether the tar members of one key form a valid sample: returns its row of the index, or its fault."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import pyarrow as pa

from pipelines.data.index.fault import QuarantineEntry
from pipelines.data.index.present import join_input_names
from pipelines.data.tars.errors import FaultReason, SampleError, medium_reason, missing_input_reason
from pipelines.data.tars.headers import MemberKind, TarMember
from pipelines.data.tars.inputs import (
    TEXT,
    TEXT_EXTENSIONS,
    MemberInput,
    describe_known_extensions,
    input_of_extension,
    input_requirements,
)
from pipelines.data.tars.member_names import path_leaves_folder, split_name
from pipelines.data.tars.sample import TextLimits, hash_texts, parse_group, parse_texts
from vlmodel.conversation import format_transcript
from vlmodel.media.base import CheckLimits, MediumError
from vlmodel.media.registry import all_media
from vlmodel.sample import SampleTexts

_INPUT_COLUMNS = {"offset": pa.int64(), "size": pa.int64(), "sha256": pa.string(), "extension": pa.string()}
_COLUMNS = {
    "key": pa.string(),
    "key_hash": pa.uint64(),
    "split_hash": pa.uint64(),
    "present": pa.string(),
    **{f"{kind}_{what}": pa.int64() for kind in TEXT_EXTENSIONS for what in ("offset", "size")},
    "captions": pa.int32(),
    "questions": pa.int32(),
    "conversations": pa.int32(),
    "texts_hash": pa.binary(16),
    "text_hashes": pa.list_(pa.uint32()),
}

MAX_TEXT_BYTES = 64 << 20
# Other loaders of such tars would unpickle these.
_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt")

Row = dict[str, Any]


def sample_schema(inputs: Mapping[str, str]) -> pa.Schema:
    """Return the columns of the index's table of samples; those of an input are null if a sample lacks it.

    Offsets and sizes are bytes of the tar. ``key_hash`` is the first 8 bytes of sha256(key), big-endian;
    ``split_hash``, by which validation samples are chosen, is the same of the sample's group, or of its key where it
    has none. ``present`` is what the sample has, as ``join_input_names`` writes it. ``texts_hash`` is ``hash_texts`` of
    the text members, ``text_hashes`` are CRC-32 of each caption, question and conversation in lower case, to count the
    texts that two splits share. An input has columns as ``image.offset``, of which ``extension`` is what the member's
    name ends in, and those of its medium, as ``image.width``.

    Args:
        inputs: the medium of each input but texts; "" where no sample has it.
    """
    of_inputs = {f"{name}.{what}": kind for name, of in inputs.items() for what, kind in input_columns(of).items()}
    return pa.schema(_COLUMNS | of_inputs)


def input_columns(medium: str) -> dict[str, pa.DataType]:
    """Return the columns of an input of this medium ("" if it is not known), without the input's name, and
    their types.
    """
    facts = all_media()[medium].columns if medium else {}
    return _INPUT_COLUMNS | {fact: pa.type_for_alias(kind) for fact, kind in facts.items()}


@dataclass(frozen=True)
class SampleRules:
    """The rules that a valid sample must fulfil.

    Attributes:
        inputs: which a sample must have and may have (``IndexConfig.inputs``); others are not read.
    """

    inputs: tuple[str, ...]
    limits: CheckLimits
    text_limits: TextLimits

    @cached_property
    def input_requirements(self) -> dict[str, bool]:
        """Map each input that is read to whether every sample must have it."""
        return input_requirements(self.inputs)

    def input_of_member(self, extension: str) -> MemberInput | None:
        """Return the input that a tar member with this extension holds, if that input is read."""
        found = input_of_extension(extension)
        return found if found is not None and found.name in self.input_requirements else None

    def reads_member(self, extension: str, size: int) -> bool:
        """Whether the bytes of a tar member with this extension and size are read."""
        found = self.input_of_member(extension)
        return found is not None and size <= (MAX_TEXT_BYTES if found.name == TEXT else self.limits.max_bytes)


def check_sample(
    key: str, members: Mapping[str, TarMember], inputs: Mapping[str, str], rules: SampleRules
) -> Row | QuarantineEntry:
    """Check a sample; returns its row of the index (``sample_schema``), or its fault.

    Args:
        members: all members of the key, by extension.
        inputs: the extension of each input but texts, of those that are read.
    """
    first = next(iter(members.values()))
    found = {name: members[inputs[name]] for name in rules.input_requirements if name in inputs}
    text = {kind: members[kind] for kind in TEXT_EXTENSIONS if kind in members and TEXT in rules.input_requirements}
    if (fault := _missing_fault(key, members, found, next(iter(text.values()), None), rules)) is not None:
        return fault
    for member in (*found.values(), *text.values()):
        if (fault := _unreadable_member_fault(key, member, rules)) is not None:
            return fault
    columns: Row = {}
    for name, member in found.items():
        medium = all_media()[_medium_of(inputs[name])]
        assert member.data is not None
        try:
            facts = medium.check_file(member.data, rules.limits)
        except MediumError as error:
            remedy = "; raise that limit of data.index to take it" if error.reason == "too_large" else ""
            return QuarantineEntry(
                key, member.name, member.offset, medium_reason(error.reason, medium.name), f"{error}{remedy}"
            )
        facts |= {
            "offset": member.offset,
            "size": member.size,
            "sha256": hashlib.sha256(member.data).hexdigest(),
            "extension": inputs[name].rpartition(".")[2],
        }
        for column, value in facts.items():
            columns[f"{name}.{column}"] = value
    data = {kind: member.data for kind, member in text.items()}
    try:
        texts = _parse_texts(data, rules)
    except SampleError as error:
        named = next((text[kind] for kind in text if error.detail.startswith(f".{kind}")), None)
        at_fault = named or next(iter(text.values()), first)
        return QuarantineEntry(key, at_fault.name, at_fault.offset, error.reason, error.detail)
    if not found and not texts.present_kinds:
        return QuarantineEntry(
            key, first.name, first.offset, FaultReason.NO_INPUT, _describe_missing_input(members, rules)
        )
    group, key_hash = parse_group(data.get("json")), hash_key(key)
    return {
        "key": key,
        "key_hash": key_hash,
        "split_hash": key_hash if group is None else hash_key(group),
        "present": join_input_names([*found, *texts.present_kinds]),
        **columns,
        **_text_count_columns(texts),
        "texts_hash": hash_texts(*map(data.get, TEXT_EXTENSIONS)) if text else None,
        **{f"{kind}_offset": text[kind].offset if kind in text else None for kind in TEXT_EXTENSIONS},
        **{f"{kind}_size": text[kind].size if kind in text else None for kind in TEXT_EXTENSIONS},
    }


def _missing_fault(
    key: str,
    members: Mapping[str, TarMember],
    found: Mapping[str, TarMember],
    text: TarMember | None,
    rules: SampleRules,
) -> QuarantineEntry | None:
    """Return the fault of a sample that lacks a required input."""
    for name, is_required in rules.input_requirements.items():
        if is_required and (text if name == TEXT else found.get(name)) is None:
            at = next(iter((found or members).values()))
            listing = ", ".join(f".{extension}" for extension in members)
            detail = f"there is only {listing}; the input {name!r} ends in {describe_known_extensions(name)}"
            return QuarantineEntry(key, at.name, at.offset, missing_input_reason(name), detail)
    return None


def _unreadable_member_fault(key: str, member: TarMember, rules: SampleRules) -> QuarantineEntry | None:
    """Return the fault of a tar member that is empty, or too large to be read."""
    reason: str
    if member.size == 0:
        reason, detail = FaultReason.EMPTY_MEMBER, f"{member.name!r} has no bytes"
    elif member.data is not None:
        return None
    elif (medium := _medium_of(_member_extension(member))) == TEXT:
        reason, detail = FaultReason.BAD_SCHEMA, f"a text of {member.size} bytes; at most {MAX_TEXT_BYTES} are read"
    else:
        limit = f"data.index.max_bytes allows {rules.limits.max_bytes}"
        reason, detail = medium_reason("too_large", medium), f"a file of {member.size} bytes; {limit}"
    return QuarantineEntry(key, member.name, member.offset, reason, detail)


def member_problem(extension: str, member: TarMember) -> tuple[FaultReason, str] | None:
    """Describe what is wrong with a tar member, regardless of its sample; None if nothing is."""
    if not member.utf8:
        return FaultReason.BAD_UTF8, "the member's name is not UTF-8"
    if member.kind is MemberKind.LINK:
        return FaultReason.UNSAFE_MEMBER, "a link; store the file itself"
    if path_leaves_folder(member.name):
        return FaultReason.UNSAFE_MEMBER, "an absolute path or one with '..'"
    if member.kind is MemberKind.SPECIAL:
        return FaultReason.UNSAFE_MEMBER, "a device, a pipe, a sparse file or an unknown type of member"
    if extension.rpartition(".")[2] in _PICKLES:
        return FaultReason.UNSAFE_MEMBER, "a pickle, which executes code when it is loaded; store the data as JSON"
    return None


def hash_key(key: str) -> int:
    """Convert the first 8 bytes of sha256(key) to a number."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8], "big")


def _medium_of(extension: str) -> str:
    found = input_of_extension(extension)
    assert found is not None
    return found.medium


def _member_extension(member: TarMember) -> str:
    key_and_extension = split_name(member.name)
    assert key_and_extension is not None
    return key_and_extension[1]


def _describe_missing_input(members: Mapping[str, TarMember], rules: SampleRules) -> str:
    listing = ", ".join(f".{extension}" for extension in members)
    return f"there is only {listing}, and none of the inputs {', '.join(rules.input_requirements)} (data.index.inputs)"


def _parse_texts(data: Mapping[str, bytes | None], rules: SampleRules) -> SampleTexts:
    """Parse the texts of a sample's text members."""
    if not data:
        return SampleTexts()
    texts = parse_texts(data.get("json"), data.get("txt"), rules.text_limits, data.get("cls"))
    if rules.input_requirements[TEXT] and not texts.present_kinds:
        raise SampleError(
            FaultReason.MISSING_TEXT, "no caption, question, conversation or class in .json, .txt or .cls"
        )
    return texts


def _text_count_columns(texts: SampleTexts) -> Row:
    # Classes are in many samples, so they are no sign of a text that two splits share.
    questions = (question.question for question in texts.questions)
    all_texts = [*texts.captions, *questions, *map(format_transcript, texts.conversations)]
    return {
        "captions": len(texts.captions),
        "questions": len(texts.questions),
        "conversations": len(texts.conversations),
        "text_hashes": [crc32(text.lower().encode()) for text in all_texts],
    }
