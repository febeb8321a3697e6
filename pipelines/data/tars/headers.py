"""Reads tar headers in one sequential pass: ustar, PAX and GNU long names; every corruption is found.

``tarfile`` takes a zeroed block for the end, and an archive cut at a header for a complete one; here each is a
``TarCorruption``, and reading continues at the next valid header, so one bad block costs one sample. Nothing is
extracted.

Formats: POSIX.1-2017 "pax Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from pipelines.data.tars.errors import FaultReason

BLOCK = 512
_ZERO = bytes(BLOCK)
_READ = 1 << 20
_MAX_EXTENSION = 1 << 20  # bytes of a PAX header or a GNU long name
# Multiples to which writers pad an archive: GNU tar's and tarfile's 20 blocks, or a power of two.
_RECORDS = (20 * BLOCK, *(1 << bits for bits in range(10, 31)))


class MemberKind(StrEnum):
    """What a tar member is: a file, a folder, a link, or something else."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    SPECIAL = "special"
    """A device, a pipe, a sparse file, or a type that is not known."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member of a tar.

    Attributes:
        name: as stored; bytes that are not UTF-8 appear escaped.
        offset: of its data, in bytes from the start of the tar.
        size: of its data in bytes.
        kind: what it is.
        utf8: whether the stored name is UTF-8.
        data: its bytes, where they were asked for.
    """

    name: str
    offset: int
    size: int
    kind: MemberKind
    utf8: bool = True
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class TarCorruption:
    """Describes a place where the tar is corrupt.

    Attributes:
        offset: in bytes from the start of the tar.
        detail: what is wrong there.
        member: name of the member whose data is cut, if it is one.
    """

    offset: int
    detail: str
    member: str | None = None

    @property
    def reason(self) -> FaultReason:
        return FaultReason.BROKEN_TAR


class _InvalidHeaderError(Exception):
    """The tar block that was read is not a valid header."""


@dataclass(frozen=True, slots=True)
class _TarHeader:
    type: bytes
    name: bytes
    size: int
    sparse_blocks_follow: bool


class _ByteReader:
    """Reads the tar in order, in pieces of any size."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer, self._at = b"", 0
        self.position = 0

    def read_up_to(self, size: int) -> bytes:
        """Read the next ``size`` bytes, fewer at the end of the tar."""
        if self._at + size > len(self._buffer):
            pieces = [self._buffer[self._at :]]
            have = len(pieces[0])
            while have < size and (piece := self._read(max(_READ, size - have))):
                pieces.append(piece)
                have += len(piece)
            self._buffer, self._at = b"".join(pieces), 0
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        self.position += len(data)
        return data

    def skip_bytes(self, size: int) -> int:
        """Skip ``size`` bytes, fewer at the end of the tar; returns how many."""
        left = size
        while left and (data := self.read_up_to(min(left, _READ))):
            left -= len(data)
        return size - left

    def skip_zeros(self) -> bool:
        """Skip blocks of zeros. Returns whether they reach to the end of the tar."""
        while block := self.read_up_to(BLOCK):
            if block.count(0) != len(block):
                self._at -= len(block)
                self.position -= len(block)
                return False
        return True


def read_tar(
    read: Callable[[int], bytes], is_wanted: Callable[[str, int], bool] = lambda name, size: False
) -> Iterator[TarMember | TarCorruption]:
    """Iterate over the members and the corruptions of a tar, in its order.

    Args:
        read: gives the next bytes, at most as many as asked for, b"" at the end; called in order, never twice for
            the same bytes, up to the very end of the tar.
        is_wanted: by name and size, whether to read a member's data.
    """
    yield from _TarParser(_ByteReader(read), is_wanted)


class _TarParser:
    """Parses a tar step by step, and holds the state between steps.

    After a corruption it is ``lost`` until the next valid header, and what follows is no further corruption.
    """

    def __init__(self, stream: _ByteReader, is_wanted: Callable[[str, int], bool]) -> None:
        self._stream, self._is_wanted = stream, is_wanted
        self._lost = False
        self._next_pax: dict[str, bytes] = {}  # of the next member, by PAX and GNU headers
        self._global_pax: dict[str, bytes] = {}  # of all members that follow
        self._at_end = False

    def __iter__(self) -> Iterator[TarMember | TarCorruption]:
        while not self._at_end:
            offset = self._stream.position
            block = self._stream.read_up_to(BLOCK)
            try:
                if len(block) < BLOCK:
                    self._at_end = True
                    raise _InvalidHeaderError(
                        "the tar ends inside a header" if block else "the tar ends without its end mark"
                    )
                if block == _ZERO:
                    self._read_zeros(offset)
                    continue
                header = _parse_header(block, strict=self._lost)
            except _InvalidHeaderError as damage:
                if not self._lost:
                    yield TarCorruption(offset, str(damage))
                self._drop_extended_headers()
                continue
            self._lost = False
            try:
                if header.type in b"xgLK":
                    self._read_extension(header)
                    continue
                size, raw_name, kind = self._resolve_member(header)
            except _InvalidHeaderError as damage:
                yield TarCorruption(offset, str(damage))
                self._drop_extended_headers()
                continue
            yield from self._read_member(header, size, raw_name, kind)

    def _drop_extended_headers(self) -> None:
        self._lost, self._next_pax = True, {}

    def _read_zeros(self, offset: int) -> None:
        """Read the tar's end mark or a zeroed block before the end; raises ``_InvalidHeaderError`` if it is damaged."""
        if not self._stream.skip_zeros():
            raise _InvalidHeaderError(f"a zeroed block, with data after it at {self._stream.position}")
        self._at_end = True
        if problem := _describe_end_problem(self._stream.position - offset, self._stream.position):
            raise _InvalidHeaderError(problem)

    def _read_extension(self, header: _TarHeader) -> None:
        if header.size > _MAX_EXTENSION:
            raise _InvalidHeaderError(f"an extended header of {header.size} bytes")
        payload = self._stream.read_up_to(_round_up_to_tar_block(header.size))
        if len(payload) < header.size:
            raise _InvalidHeaderError("the tar ends inside an extended header")
        payload = payload[: header.size]
        if header.type == b"g":
            self._global_pax |= _parse_pax(payload)
        elif header.type == b"x":
            self._next_pax |= _parse_pax(payload)
        elif header.type == b"L":
            self._next_pax["path"] = payload.rstrip(b"\0")

    def _resolve_member(self, header: _TarHeader) -> tuple[int, bytes, MemberKind]:
        """Return the size, the stored name and the kind of a member, from its header and the extended headers before
        it.
        """
        more = header.sparse_blocks_follow
        while more and len(block := self._stream.read_up_to(BLOCK)) == BLOCK:
            more = block[504] != 0
        pax, self._next_pax = self._global_pax | self._next_pax, {}
        raw_name = pax.get("path", header.name)
        try:
            size = int(pax["size"]) if "size" in pax else header.size
        except ValueError:
            raise _InvalidHeaderError(f"an extended header gives the size {pax['size']!r}") from None
        return size, raw_name, _member_kind(header.type, raw_name, pax)

    def _read_member(
        self, header: _TarHeader, size: int, raw_name: bytes, kind: MemberKind
    ) -> Iterator[TarMember | TarCorruption]:
        name, utf8 = _decode_name(raw_name)
        offset = self._stream.position
        # Links, directories and devices have no data, whatever their size field holds.
        stored = size if kind is MemberKind.FILE or header.type not in b"123456" else 0
        data = self._stream.read_up_to(stored) if kind is MemberKind.FILE and self._is_wanted(name, size) else None
        passed = len(data) if data is not None else self._stream.skip_bytes(stored)
        if passed < stored:
            self._at_end = True
            yield TarCorruption(offset, f"the tar ends after {passed} of {stored} bytes of {name!r}", name)
            return
        yield TarMember(name, offset, size, kind, utf8, data)
        padding = _round_up_to_tar_block(stored) - stored
        if self._stream.skip_bytes(padding) < padding:
            self._at_end = True
            yield TarCorruption(self._stream.position, f"the tar ends in the padding after {name!r}")


def _parse_header(block: bytes, strict: bool) -> _TarHeader:
    """Parse a tar header or raise ``_InvalidHeaderError``; ``strict`` requires the ustar magic, as data can look
    like older headers.
    """
    magic = block[257:263]
    if strict and magic[:5] != b"ustar":
        raise _InvalidHeaderError("no header")
    if block[:2] == b"\x1f\x8b":
        raise _InvalidHeaderError("compressed with gzip; decompress it: samples are read by their place in the tar")
    stored = _parse_number(block[148:156], "checksum")
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    if stored != unsigned and stored != unsigned - 256 * sum(b > 127 for b in block[:148] + block[156:]):
        raise _InvalidHeaderError("a damaged header: its checksum does not fit")
    name = block[:100].split(b"\0", 1)[0]
    if magic == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    kind = block[156:157]
    return _TarHeader(kind, name, _parse_number(block[124:136], "size"), kind == b"S" and block[482] != 0)


def _parse_number(field: bytes, what: str) -> int:
    if field[0] == 0x80:  # GNU: base 256, for sizes from 8 GiB on
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip(b" ")
    try:
        value = int(digits, 8) if digits else 0
    except ValueError:
        value = -1
    if value < 0:
        raise _InvalidHeaderError(f"a damaged header: its {what} is {field!r}")
    return value


def _parse_pax(payload: bytes) -> dict[str, bytes]:
    facts: dict[str, bytes] = {}
    at = 0
    while at < len(payload):
        digits, space, _ = payload[at : at + 20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = payload[at : at + length]
        keyword, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) != length or record[-1:] != b"\n":
            raise _InvalidHeaderError("a damaged PAX header")
        facts[keyword.decode("utf-8", "backslashreplace")] = value
        at += length
    if "size" in facts and not facts["size"].isdigit():
        raise _InvalidHeaderError(f"a PAX header gives the size {facts['size']!r}")
    return facts


def _member_kind(type_flag: bytes, name: bytes, facts: dict[str, bytes]) -> MemberKind:
    if any(keyword.startswith("GNU.sparse") for keyword in facts):
        return MemberKind.SPECIAL
    if type_flag in (b"0", b"\0", b"7"):
        return MemberKind.DIRECTORY if name.endswith(b"/") else MemberKind.FILE
    if type_flag == b"5":
        return MemberKind.DIRECTORY
    return MemberKind.LINK if type_flag in (b"1", b"2") else MemberKind.SPECIAL


def _decode_name(name: bytes) -> tuple[str, bool]:
    try:
        return name.decode("utf-8"), True
    except UnicodeDecodeError:
        return name.decode("utf-8", "backslashreplace"), False


def _describe_end_problem(zeros: int, size: int) -> str | None:
    """Describe what is wrong with the end of a tar of ``size`` bytes, the last ``zeros`` of them zero; None if nothing
    is.
    """
    if zeros < 2 * BLOCK:
        return "the tar's end mark is cut"
    if zeros == 2 * BLOCK or any(size % record == 0 and zeros <= record + BLOCK for record in _RECORDS):
        return None
    return f"{zeros} bytes of zeros at the end, more than padding explains: lost data"


def _round_up_to_tar_block(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
