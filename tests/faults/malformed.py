"""Requests that no service should answer, as the bytes that go over the wire; drawn anew with each seed."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

from PIL import Image

from tests.pipelines.registry.conftest import QUESTION, picture

TIMEOUT_S = 60.0
_BOUNDARY = "limit"
_HEAD = b"POST /v1/vqa HTTP/1.1\r\nhost: 127.0.0.1\r\n"
_CHUNKED = _HEAD + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Malformed:
    """A request.

    Attributes:
        kind: what is wrong with it.
        data: all of it, head and body.
    """

    kind: str
    data: bytes

    @property
    def hangs_up(self) -> bool:
        """Whether the client is gone before an answer could come."""
        return self.kind == "cut off"

    @property
    def may_be_lost(self) -> bool:
        """Whether its answer need not arrive: the connection may end while the rest is still being sent."""
        return self.kind in ("cut off", "too long", "endless head")


def malformed(seed: int, count: int, with_unfinished: bool = False) -> Iterator[Malformed]:
    """So many requests, evenly of all kinds.

    Args:
        with_unfinished: also of those that the service answers when their time is over.
    """
    draw = random.Random(seed)
    all_kinds = {**_KINDS, **_UNFINISHED} if with_unfinished else _KINDS
    kinds = list(all_kinds)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        yield Malformed(kind, all_kinds[kind](draw))


def unfinished_bodies(seed: int, count: int) -> list[Malformed]:
    """So many requests that lack the end of their bodies."""
    draw = random.Random(seed)
    return [Malformed("unfinished body", _unfinished_body(draw)) for _ in range(count)]


def pictures_of_100_megapixels(count: int) -> list[Malformed]:
    """So many requests, well but for their images, which are small files."""
    draw = random.Random(count)
    return [Malformed("decompression bomb", _request_with_image(draw, _huge_picture("WEBP"))) for _ in range(count)]


def status_of(request: Malformed, port: int) -> int:
    """Send a request; the status of its answer, 0 where the connection ended without one, -1 where nothing came."""
    return statuses_of([request], port)[0]


def statuses_of(requests: Sequence[Malformed], port: int) -> list[int]:
    """Send requests, each over a connection of its own, before any answer is read; see ``status_of``."""
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT_S)) for _ in requests]
        sent = [_send(request, connection) for request, connection in zip(requests, connections, strict=True)]
        return [_status_on(c) if waits else 0 for waits, c in zip(sent, connections, strict=True)]


def _send(request: Malformed, connection: socket.socket) -> bool:
    """Send it; whether an answer is to be read."""
    try:
        connection.sendall(request.data)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return not request.hangs_up


def _status_on(connection: socket.socket) -> int:
    try:
        head = connection.recv(1 << 16).split(b" ", 2)
    except ConnectionResetError:
        return 0
    except TimeoutError:
        return -1
    return int(head[1]) if len(head) > 1 else 0


def _post(
    body: bytes,
    *headers: str,
    content_type: str = "application/json",
    path: str = "/v1/vqa",
    host: str = "host: 127.0.0.1",
) -> bytes:
    head = [
        f"POST {path} HTTP/1.1", host, f"content-type: {content_type}", f"content-length: {len(body)}",
        "connection: close", *headers,
    ]  # fmt: skip
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def _valid_body(question: str = QUESTION) -> bytes:
    return json.dumps({"image": base64.b64encode(picture(0)).decode(), "question": question}).encode()


def _request_with_image(draw: random.Random, image: bytes) -> bytes:
    """A request that is well but for its image, in one of the two ways to send it."""
    if draw.random() < 0.5:
        return _post(json.dumps({"image": base64.b64encode(image).decode(), "question": QUESTION}).encode())
    return _form(_file("image", image), _field("question", QUESTION.encode()))


def _field(name: str, value: bytes, *headers: str) -> bytes:
    head = [f'content-disposition: form-data; name="{name}"', *headers, "", ""]
    return "\r\n".join(head).encode("latin-1") + value


def _file(name: str, content: bytes) -> bytes:
    head = f'content-disposition: form-data; name="{name}"; filename="a.png"\r\ncontent-type: image/png\r\n\r\n'
    return head.encode() + content


def _form(
    *parts: bytes,
    content_type: str = f"multipart/form-data; boundary={_BOUNDARY}",
    closed: bool = True,
    headers: Sequence[str] = (),
    path: str = "/v1/vqa",
) -> bytes:
    body = b"".join(b"--%b\r\n%b\r\n" % (_BOUNDARY.encode(), part) for part in parts)
    end = b"--%b--\r\n" % _BOUNDARY.encode() if closed else b""
    return _post(body + end, *headers, content_type=content_type, path=path)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, *extra: bytes, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(extra) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    )


@cache
def _zeros(size: int) -> bytes:
    return zlib.compress(bytes(size))


@cache
def _huge_picture(form: str) -> bytes:
    """One of 100 megapixels in a small file."""
    file = io.BytesIO()
    options = {"lossless": True, "method": 0, "quality": 0} if form == "WEBP" else {}
    Image.new("RGB" if form == "WEBP" else "1", (10_000, 10_000)).save(file, form, **options)
    return file.getvalue()


def _bomb(draw: random.Random) -> bytes:
    side = draw.choice([20_000, 60_000, 2**31 - 1])
    text = _chunk(b"zTXt", b"Comment\0\0" + _zeros(64 << 20))
    profile = _chunk(b"iCCP", b"icc\0\0" + _zeros(64 << 20))
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\x00\x3b"
    bmp = (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    bombs = [
        _huge_picture("WEBP"),
        _huge_picture("PNG"),
        _png(side, side, data=_zeros(1 << 20)),
        _png(64, 64, text),
        _png(64, 64, profile),
        _png(4000, 4000, data=_zeros(30 << 20)),
        gif + frame,
        bmp,
    ]
    return _request_with_image(draw, draw.choice(bombs))


def _truncated(draw: random.Random) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(draw.randrange(100)))).save(file, draw.choice(["PNG", "JPEG", "WEBP", "BMP", "GIF"]))
    whole = file.getvalue()
    return _request_with_image(draw, whole[: draw.randrange(1, len(whole) // 2)])


def _no_image(draw: random.Random) -> bytes:
    magic = draw.choice(
        [
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0",
            b"RIFF\x24\0\0\0WEBPVP8 ",
            b"BM",
            b"GIF89a",
            b"II*\0",
            b"%PDF-",
            b"",
        ]
    )
    return _request_with_image(draw, magic + draw.randbytes(draw.randrange(0, 5000)))


def _bad_base64(draw: random.Random) -> bytes:
    image = base64.b64encode(picture(0)).decode()
    at = draw.randrange(len(image) - 4)
    bad = [
        "data:image/png," + image,
        image[: at + 1] + draw.choice("*é\u2028\0") + image[at + 1 :],
        image[: 4 * (at // 4) + 1],
        "=" * (at + 1),
        "",
    ]
    return _post(json.dumps({"image": draw.choice(bad), "question": QUESTION}).encode())


def _wrong_type(draw: random.Random) -> bytes:
    body: dict[str, object] = {"image": base64.b64encode(picture(0)).decode(), "question": QUESTION}
    wrong: list[tuple[str, list[object]]] = [
        ("image", [None, 1, True, [], {}, ["a"], 1e300]),
        ("question", [None, 1, True, [QUESTION], {}, "", " \t\n", "?" * 2000]),
        ("questions", [QUESTION, [], [1], [None], [[QUESTION]], {}, [QUESTION]]),
        ("top_k", ["5", 0, -1, 21, 10**30, 10**4000, 1.5, True, None, float("nan"), float("inf"), [], {}]),
        ("attention", ["yes", 1, 0, None, [], 2.0]),
        (draw.choice(["", "Image", "__class__", "x" * 10_000, "\0", "𝒳"]), [None, 1, "a"]),
    ]
    field, values = draw.choice(wrong)
    return _post(json.dumps({**body, field: draw.choice(values)}).encode())


def _too_many(draw: random.Random) -> bytes:
    questions = [QUESTION] * draw.randrange(17, 5000)
    return _post(json.dumps({"image": base64.b64encode(picture(0)).decode(), "questions": questions}).encode())


def _bad_json(draw: random.Random) -> bytes:
    good = _valid_body()
    depth = draw.choice([100, 10_000, 400_000])
    bad = [
        good[: draw.randrange(len(good))],
        good.decode().encode("utf-16"),
        draw.randbytes(draw.randrange(2000)),
        b"[" * depth,
        b"[" * depth + b"]" * depth,
        b'{"image":' * (depth // 9) + b"1" + b"}" * (depth // 9),
        b'{"image": "' + b"\\ud800" * 10 + b'", "question": "?"}',
        b'{"top_k": ' + b"9" * draw.choice([100, 4300, 4301, 100_000]) + b"}",
        b'{"image": "\xff\xfe", "question": "?"}',
        b'{"image": "aa==", "questions": [' + b'"",' * 1_000_000 + b'""]}',
        b'{"image": "aa==", "a": [' + b"[]," * 1_000_000 + b"[]]}",
        b"{" + b",".join(b'"%d":0' % n for n in range(draw.choice([100, 100_000]))) + b"}",
        draw.choice([b"null", b"1", b'"a"', b"[]", b"true", b"NaN", b"-", b"{}", b"{,}", b'{"a":1}{}', b"\0"]),
    ]
    return _post(draw.choice(bad))


def _bad_form(draw: random.Random) -> bytes:
    image, question = _file("image", picture(0)), _field("question", QUESTION.encode())
    kind = "multipart/form-data"
    forms = [
        _form(image, question, content_type=kind),
        _form(image, question, content_type=f"{kind}; boundary=another"),
        _form(image, question, content_type=f"{kind}; boundary={'x' * 5000}"),
        _form(image, image, question),
        _form(image, *[question] * 100),
        _form(image, *[_field(f"f{n}", b"1") for n in range(70)]),
        _form(image),
        _form(question),
        _form(),
        _form(image, _file("question", draw.randbytes(50) + b"\xff")),
        _form(_field("image", draw.randbytes(100)), question),
        _form(image, question, _field("top_k", draw.choice([b"a", b"-1", b"1e9", b"9" * 5000, b"\xff"]))),
        _form(image, question, _field("attention", b"perhaps")),
        _form(b"content-disposition: form-data\r\n\r\n1", image, question),
        _form(b"content-disposition: attachment; name=\r\n\r\n1", image),
        _form(b"no header at all", image),
        _form(b"x-a: " + b"a" * 200_000 + b"\r\n\r\n1", image),
        _form(image[: len(image) // 2], closed=False),
        _post(draw.randbytes(3000), content_type=f"{kind}; boundary={_BOUNDARY}"),
    ]  # fmt: skip
    return draw.choice(forms)


def _charset(draw: random.Random) -> bytes:
    """A form with half a surrogate pair, or in a charset that is not UTF-8."""
    image, question = _file("image", picture(0)), _field("question", QUESTION.encode())
    charset = draw.choice(["undefined", "idna", "no", "base64", "utf-7", "punycode", "utf-16"])
    kind = f"multipart/form-data; boundary={_BOUNDARY}; charset="
    forms = [
        _form(image, question, content_type=kind + charset),
        _form(image, _field("quéstion\xff", b"?"), content_type=kind + charset),
        _form(image, _field("question", b"+2AA-"), content_type=kind + charset),
        _form(image, _field("question", b"+2AA-"), content_type=f"{kind}utf-7"),
        _form(image, _field("question-", _punycode()), content_type=f"{kind}punycode"),
        _form(image, _field("question", b"\xed\xa0\x80")),
        _form(image, _field("question", b"what \xed\xb0\x80?"), content_type=f"{kind}utf-8"),
    ]
    return draw.choice(forms)


@cache
def _punycode() -> bytes:
    """A megabyte that takes quadratic time to be decoded."""
    return ("ü" * 50).encode("punycode") + b"a" * 1_000_000


def _long_text(draw: random.Random) -> bytes:
    text = draw.choice(["a", "what ", "?", "\u0301", "𝒳"]) * draw.choice([2_000, 100_000, 200_000])
    if draw.random() < 0.5:
        return _post(_valid_body(text))
    return _form(_file("image", picture(0)), _field("question", text.encode()))


def _content_type(draw: random.Random) -> bytes:
    kinds = [
        "text/plain", "application/xml", "", "json", "application/x-www-form-urlencoded", "image/png", "a" * 5000,
        "application/json\xff", "*/*", "multipart/mixed; boundary=a", "\x01",
    ]  # fmt: skip
    return _post(picture(0), content_type=draw.choice(kinds))


@cache
def _gzip_bomb() -> bytes:
    return gzip.compress(bytes(64 << 20))


def _encoded(draw: random.Random) -> bytes:
    zipped = gzip.compress(_valid_body())
    bodies = [
        zipped[: draw.randrange(len(zipped))],
        zipped + draw.choice([zipped, b"\0", b"x"]),
        draw.randbytes(200),
        _gzip_bomb(),
    ]
    other = f"content-encoding: {draw.choice(['br', 'deflate', 'zstd', 'gzip, gzip', 'x' * 5000])}"
    return draw.choice([_post(draw.choice(bodies), "content-encoding: gzip"), _post(zipped, other)])


def _foreign_page(draw: random.Random) -> bytes:
    """A request that is well, and that a page of another site has a browser send."""
    origins = ["https://evil.example", "null", "http://127.0.0.1.evil.example", "file://", "http://127.0.0.1:1", "\xff"]
    sites = ["sec-fetch-site: cross-site", "sec-fetch-site: same-site", "sec-fetch-site: \xff"]
    header = draw.choice([f"origin: {draw.choice(origins)}", *sites])
    if draw.random() < 0.5:
        return _post(_valid_body(), header)
    parts = _file("image", picture(0)), _field("question", QUESTION.encode()), _field("answer", b"poison")
    return _form(*parts, headers=[header], path="/v1/feedback")


def _foreign_host(draw: random.Random) -> bytes:
    """A request that is well, and addressed to a foreign name, as by a page whose name was made to lead here."""
    names = ["rebound.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "192.0.2.1", "[2001:db8::1]",
             "localhost:1@evil.example", "", "127.0.0.1\r\nhost: evil.example", "a" * 5000]  # fmt: skip
    return _post(_valid_body(), host=f"host: {draw.choice(names)}", path=draw.choice(["/v1/vqa", "/v1/feedback"]))


def _headers(draw: random.Random) -> bytes:
    bad = [
        "x-a: " + "a" * draw.choice([10_000, 70_000, 1_000_000]),
        "\r\n".join(f"x-{n}: a" for n in range(draw.choice([200, 5000]))),
        "content-length: 5",
        "transfer-encoding: chunked, nonsense",
        "transfer-encoding: gzip",
        "content-encoding: gzip",
        "no colon",
        ": no name",
        "x-a: \0",
        " folded",
        f"x-request-timeout-seconds: {draw.choice(['abc', '-1', 'nan', '1e999', ''])}",
        f"serve_multiplexed_model_id: {draw.randrange(10**9)}",
        f"x-request-id: {'r' * 10_000}",
        "authorization: Bearer " + "k" * 10_000,
        "traceparent: 00-zz-zz-01",
        "expect: 200-ok",
        "upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: a",
        "cookie: " + "a=b;" * 1000,
    ]
    return _post(b"{}", draw.choice(bad))


def _length(draw: random.Random) -> bytes:
    length = draw.choice(["-1", "a", "1e3", "0x10", "+5", "99999999999", "9" * 30, "9" * 5000, " ", "5, 5"])
    return _HEAD + f"content-length: {length}\r\n\r\n{{}}".encode()


def _too_long(draw: random.Random) -> bytes:
    block = bytes([draw.randrange(256)]) * (64 << 10)
    return _CHUNKED + b"".join(b"10000\r\n" + block + b"\r\n" for _ in range(40)) + b"0\r\n\r\n"


def _bad_chunks(draw: random.Random) -> bytes:
    return _CHUNKED + draw.choice([b"zz\r\n{}\r\n0\r\n\r\n", b"-1\r\n{}\r\n", b"f" * 40 + b"\r\n{}", b"2\r\n{}abc\r\n"])


def _elsewhere(draw: random.Random) -> bytes:
    method = draw.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
    paths = [
        "/v1/vqa", "/v1/vqa/..", "/v1/%00", "/v1/%ff%fe", "/page/..%2f..%2fapp.py", "/" + "a" * 20_000, "//nowhere",
        "/v1/vqa?x=" + "%" * 50,
    ]  # fmt: skip
    head = [f"{method} {draw.choice(paths)} HTTP/1.1", "host: 127.0.0.1", "connection: close", "content-length: 0"]
    return "\r\n".join([*head, "", ""]).encode()


def _no_http(draw: random.Random) -> bytes:
    requests = [
        draw.randbytes(500) + b"\r\n\r\n",
        b"POST\r\n\r\n",
        b"POST /v1/vqa HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01" + draw.randbytes(200),
        b"FOO /v1/vqa HTTP/1.1\r\n\r\n",
        b"POST /v1/vqa\xff HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET /v1/model HTTP/1.1\r\nhost: rebound.example\r\nconnection: close\r\n\r\n",
    ]
    return draw.choice(requests)


def _endless_head(draw: random.Random) -> bytes:
    return b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + draw.choice([b"a", b"x: a\r\n"]) * (2 << 20)


def _unfinished_head(draw: random.Random) -> bytes:
    return _post(_valid_body())[: draw.randrange(1, 60)]


def _unfinished_body(draw: random.Random) -> bytes:
    """Short enough for the ingress to wait for all of it, or so long that a replica waits for the rest."""
    whole = draw.choice([_post(_valid_body()), _form(_file("image", bytes(draw.choice([100, 100_000]))))])
    return whole[:-20]


def _cut_off(draw: random.Random) -> bytes:
    whole = _request_with_image(draw, picture(0))
    return whole[: draw.randrange(1, len(whole) - 10)]


_KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "decompression bomb": _bomb,
    "truncated image": _truncated,
    "no image": _no_image,
    "bad base64": _bad_base64,
    "wrong type": _wrong_type,
    "too many questions": _too_many,
    "bad JSON": _bad_json,
    "bad form": _bad_form,
    "charset": _charset,
    "long text": _long_text,
    "content type": _content_type,
    "content encoding": _encoded,
    "page of another site": _foreign_page,
    "foreign host": _foreign_host,
    "headers": _headers,
    "length": _length,
    "too long": _too_long,
    "bad chunks": _bad_chunks,
    "method or path": _elsewhere,
    "no HTTP": _no_http,
    "endless head": _endless_head,
    "cut off": _cut_off,
}
_UNFINISHED: dict[str, Callable[[random.Random], bytes]] = {
    "unfinished head": _unfinished_head,
    "unfinished body": _unfinished_body,
}
