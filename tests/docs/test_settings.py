"""What is written of the settings is what the code says."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_lists_of_settings_are_up_to_date() -> None:
    generator = runpy.run_path(str(ROOT / "docs" / "settings.py"))
    assert (ROOT / "docs" / "SETTINGS.md").read_text(encoding="utf-8") == generator["text"](), "stale: run make docs"
    stored = json.loads((ROOT / "jobs" / "settings.json").read_text(encoding="utf-8"))
    assert stored == generator["stored"](), "stale: run make docs"
