from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from pipelines.report.html import render_page

EMPTY = {"folder": "data", "left_out": 1234, "samples": 0, "shards": [], "reasons": []}


def test_values_are_escaped_and_the_page_needs_no_other_file() -> None:
    page = render_page("quarantine.html", **EMPTY | {"folder": "<script>alert(1)</script>"})
    assert page.startswith("<!doctype html>")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "1,234 left out" in page
    assert "default-src 'none'" in page
    assert "src=" not in page
    assert "href=" not in page


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="folder"):
        render_page("quarantine.html", **{name: value for name, value in EMPTY.items() if name != "folder"})
