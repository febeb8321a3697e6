"""Decodes images given as base64 text, in the variants that programs write."""

from __future__ import annotations

import base64
import binascii

_BLANKS = b" \t\r\n\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def decode_base64(text: str) -> bytes:
    """Decode a base64 text, also one with line breaks, in the URL-safe alphabet, without padding, or in a ``data:``
    URL.

    Raises:
        ValueError: it is none of these; the message says why.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("a data: URL is read where ';base64,' stands before its data")
    try:
        data = text.encode("ascii").translate(_URL_SAFE, _BLANKS).rstrip(b"=")
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except UnicodeEncodeError:
        raise ValueError("it has characters that base64 does not have; encode the bytes of the image file") from None
    except binascii.Error:
        raise ValueError("encode the bytes of the image file") from None
