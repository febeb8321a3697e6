"""Tar headers, read raw in one sequential pass: ustar, PAX and GNU long names, with every fault found.

``tarfile`` takes a zeroed block for the end and a cut at a header for a complete archive; here each is a
``Corruption``. Reading then continues at the next valid header, so one bad block costs one sample. Nothing is ever
extracted.

Formats: POSIX.1-2017 "pax Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from pipelines.data.tars.errors import Reason

BLOCK = 512
_ZERO = bytes(BLOCK)
_READ = 1 << 20
_LONGEST_EXTENSION = 1 << 20  # of a PAX header or a GNU long name
_OF_SYSTEMS = ("Thumbs.db", "desktop.ini", "Icon\r")
# Sizes to which writers fill up an archive: GNU tar's and tarfile's 20 blocks, or a power of two.
_RECORDS = (20 * BLOCK, *(1 << bits for bits in range(10, 31)))


class Kind(StrEnum):
    """What a member is."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    SPECIAL = "special"
    """A device, a pipe, a sparse file, or a type that is not known."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar.

    Attributes:
        name: as stored; bytes that are not UTF-8 appear escaped.
        offset: of its data, in bytes from the start of the tar.
        size: of its data in bytes.
        kind: what it is.
        utf8: whether the stored name is UTF-8.
        data: its bytes, where they were wanted.
    """

    name: str
    offset: int
    size: int
    kind: Kind
    utf8: bool = True
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Corruption:
    """A place where the tar is broken.

    Attributes:
        offset: in bytes from the start of the tar.
        detail: what is wrong there.
        member: name of the member whose data is cut, if it is one.
    """

    offset: int
    detail: str
    member: str | None = None

    @property
    def reason(self) -> Reason:
        return Reason.BROKEN_TAR


class _DamagedError(Exception):
    """A block that is no sound header."""


@dataclass(frozen=True, slots=True)
class _Header:
    type: bytes
    name: bytes
    size: int
    sparse_blocks_follow: bool


class _ByteReader:
    """Bytes of the tar in order, in pieces of any size."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer, self._at = b"", 0
        self.position = 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer at the end."""
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

    def skip(self, size: int) -> int:
        """Pass over ``size`` bytes, fewer at the end; the number passed."""
        left = size
        while left and (data := self.take(min(left, _READ))):
            left -= len(data)
        return size - left

    def skip_zeros(self) -> bool:
        """Pass over blocks of zeros; whether that was the end."""
        while block := self.take(BLOCK):
            if block.count(0) != len(block):
                self._at -= len(block)
                self.position -= len(block)
                return False
        return True


def read_tar(
    read: Callable[[int], bytes], wanted: Callable[[str, int], bool] = lambda name, size: False
) -> Iterator[Member | Corruption]:
    """Members and breaks of a tar, in its order.

    Args:
        read: gives the next bytes, at most as many as asked for, b"" at the end; called in order, never twice for
            the same bytes, up to the very end of the tar.
        wanted: by name and size, whether to deliver a member's data.
    """
    feed = _ByteReader(read)
    lost = False  # between a break and the next sound header
    extended: dict[str, bytes] = {}  # what PAX and GNU headers say of the next member
    for_all: dict[str, bytes] = {}  # what PAX headers say of all that follow
    while True:
        at = feed.position
        block = feed.take(BLOCK)
        if len(block) < BLOCK:
            if not lost:
                yield Corruption(at, "the tar ends inside a header" if block else "the tar ends without its end mark")
            return
        if block == _ZERO:
            if feed.skip_zeros():
                fault = _fault_of_end(feed.position - at, feed.position)
                if fault and not lost:
                    yield Corruption(at, fault)
                return
            if not lost:
                yield Corruption(at, f"a zeroed block, with data after it at {feed.position}")
            lost, extended = True, {}
            continue
        try:
            header = _parse_header(block, strict=lost)
        except _DamagedError as damage:
            if not lost:
                yield Corruption(at, str(damage))
            lost, extended = True, {}
            continue
        lost = False

        if header.type in b"xgLK":
            payload = feed.take(_padded(header.size)) if header.size <= _LONGEST_EXTENSION else b""
            try:
                if header.size > _LONGEST_EXTENSION:
                    raise _DamagedError(f"an extended header of {header.size} bytes")
                if len(payload) < header.size:
                    raise _DamagedError("the tar ends inside an extended header")
                if header.type == b"g":
                    for_all |= _parse_pax(payload[: header.size])
                elif header.type == b"x":
                    extended |= _parse_pax(payload[: header.size])
                elif header.type == b"L":
                    extended["path"] = payload[: header.size].rstrip(b"\0")
            except _DamagedError as damage:
                yield Corruption(at, str(damage))
                lost, extended = True, {}
            continue

        while header.sparse_blocks_follow and len(more := feed.take(BLOCK)) == BLOCK and more[504]:
            pass
        facts, extended = for_all | extended, {}
        raw_name = facts.get("path", header.name)
        try:
            size = int(facts["size"]) if "size" in facts else header.size
        except ValueError:
            yield Corruption(at, f"an extended header gives the size {facts['size']!r}")
            lost = True
            continue
        kind = _kind(header.type, raw_name, facts)
        name, utf8 = _decode(raw_name)
        offset = feed.position
        # Links, directories and devices have no data, whatever their size field holds.
        stored = size if kind is Kind.FILE or header.type not in b"123456" else 0
        data = None
        if kind is Kind.FILE and wanted(name, size):
            data = feed.take(stored)
            passed = len(data)
        else:
            passed = feed.skip(stored)
        if passed < stored:
            yield Corruption(offset, f"the tar ends after {passed} of {stored} bytes of {name!r}", name)
            return
        yield Member(name, offset, size, kind, utf8, data)
        padding = _padded(stored) - stored
        if feed.skip(padding) < padding:
            yield Corruption(feed.position, f"the tar ends in the padding after {name!r}")
            return


def split_name(name: str) -> tuple[str, str] | None:
    """(key, lower-case extension) of a member by WebDataset's rule: the base name's first dot ends the key.

    None for a name without extension, for a hidden file (``is_hidden``), and for WebDataset's ``__name__`` metadata. A
    leading ``./``, as ``tar -c .`` writes it, is no part of the key.
    """
    if is_hidden(name):
        return None
    while name.startswith("./"):
        name = name[2:]
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not dot or (name.startswith("__") and name.endswith("__")):
        return None
    return folder + slash + stem, extension.lower()


def is_hidden(name: str) -> bool:
    """Whether a member is a file that systems put beside others: a hidden one, or what macOS and Windows leave."""
    base = name.rpartition("/")[2]
    return base.startswith(".") or base in _OF_SYSTEMS or "/__MACOSX/" in f"/{name}"


def leaves_folder(name: str) -> bool:
    """Whether extracting a member of this name would write outside the folder: an absolute path, or one with ``..``."""
    return name.startswith("/") or ".." in name.replace("\\", "/").split("/") or name[1:3] in (":\\", ":/")


def _parse_header(block: bytes, strict: bool) -> _Header:
    """Raises ``_DamagedError``; ``strict`` asks for the ustar magic too, as data can pass for an older header."""
    magic = block[257:263]
    if strict and magic[:5] != b"ustar":
        raise _DamagedError("no header")
    if block[:2] == b"\x1f\x8b":
        raise _DamagedError("compressed with gzip; decompress it: samples are read by their place in the tar")
    stored = _number(block[148:156], "checksum")
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    if stored != unsigned and stored != unsigned - 256 * sum(b > 127 for b in block[:148] + block[156:]):
        raise _DamagedError("a damaged header: its checksum does not fit")
    name = block[:100].split(b"\0", 1)[0]
    if magic == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    kind = block[156:157]
    return _Header(kind, name, _number(block[124:136], "size"), kind == b"S" and block[482] != 0)


def _number(field: bytes, what: str) -> int:
    if field[0] == 0x80:  # GNU: base 256, for sizes from 8 GiB on
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip(b" ")
    try:
        value = int(digits, 8) if digits else 0
    except ValueError:
        value = -1
    if value < 0:
        raise _DamagedError(f"a damaged header: its {what} is {field!r}")
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
            raise _DamagedError("a damaged PAX header")
        facts[keyword.decode("utf-8", "backslashreplace")] = value
        at += length
    if "size" in facts and not facts["size"].isdigit():
        raise _DamagedError(f"a PAX header gives the size {facts['size']!r}")
    return facts


def _kind(type_flag: bytes, name: bytes, facts: dict[str, bytes]) -> Kind:
    if any(keyword.startswith("GNU.sparse") for keyword in facts):
        return Kind.SPECIAL
    if type_flag in (b"0", b"\0", b"7"):
        return Kind.DIRECTORY if name.endswith(b"/") else Kind.FILE
    if type_flag == b"5":
        return Kind.DIRECTORY
    return Kind.LINK if type_flag in (b"1", b"2") else Kind.SPECIAL


def _decode(name: bytes) -> tuple[str, bool]:
    try:
        return name.decode("utf-8"), True
    except UnicodeDecodeError:
        return name.decode("utf-8", "backslashreplace"), False


def _fault_of_end(zeros: int, size: int) -> str | None:
    """What is wrong with a tar of ``size`` bytes that ends in this many bytes of zeros."""
    if zeros < 2 * BLOCK:
        return "the tar's end mark is cut"
    if zeros == 2 * BLOCK or any(size % record == 0 and zeros <= record + BLOCK for record in _RECORDS):
        return None
    return f"{zeros} bytes of zeros at the end, more than padding explains: lost data"


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
