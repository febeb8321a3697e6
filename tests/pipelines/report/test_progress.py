from __future__ import annotations

import io

from pipelines.report.progress import Progress


def test_a_line_now_and_then_in_a_log() -> None:
    out = io.StringIO()
    with Progress("index", out=out) as progress:
        for done in range(4):
            progress(done, 3)
    first, last = out.getvalue().splitlines()
    assert first.startswith("index:   0%|")
    assert last.startswith("index: 100%|")
    assert "3/3" in last
