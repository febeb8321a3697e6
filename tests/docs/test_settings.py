"""docs/SETTINGS.md is what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_list_of_settings_is_up_to_date() -> None:
    generator = runpy.run_path(str(DOCS / "settings.py"))
    assert (DOCS / "SETTINGS.md").read_text(encoding="utf-8") == generator["text"](), "stale: run make docs"
