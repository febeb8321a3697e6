"""What names of files and keys do to a terminal: nothing."""

from __future__ import annotations

import pytest

from pipelines.errors import escape_unprintable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ö, 日本語 and a\u0301", "plain text, ö, 日本語 and a\u0301"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("two\nlines\r\ttab", "two\\nlines\\r\\ttab"),
        ("\x9b2J \u202egpj.exe", "\\x9b2J \\u202egpj.exe"),
        ("lone \udce9", "lone \\udce9"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert escape_unprintable(text) == shown
    assert shown.isprintable()
    shown.encode()
