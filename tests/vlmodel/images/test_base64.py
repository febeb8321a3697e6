from __future__ import annotations

import base64

import pytest

from vlmodel.images.base64 import decode_base64

DATA = bytes(range(256)) * 3 + b"\xfb\xff"


@pytest.mark.parametrize("data", [DATA, DATA[:-1], DATA[:-2], b"\xfb\xff\xfe", b""])
@pytest.mark.parametrize("url_safe", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("width", [0, 76, 3])
@pytest.mark.parametrize("head", ["", "data:image/png;base64,", "DATA:image/svg+xml;charset=utf-8;BASE64,"])
def test_the_ways_to_write_base64(data: bytes, url_safe: bool, padded: bool, end: str, width: int, head: str) -> None:
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(data).decode()
    text = text if padded else text.rstrip("=")
    lines = [text[at : at + width] for at in range(0, len(text), width)] if width else [text]
    assert decode_base64(head + (end or " ").join(lines) + end) == data


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("not base64!", "encode the bytes"),
        ("aaaaa", "encode the bytes"),
        ("aa=aa", "encode the bytes"),
        ("päää", "characters"),
        ("aaa\ud800", "characters"),
        ("data:image/png,aaaa", "';base64,'"),
        ("data:image/png;base64", "';base64,'"),
        ("https://example.org/a.png", "encode the bytes"),
    ],
)
def test_what_is_no_base64(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        decode_base64(text)
