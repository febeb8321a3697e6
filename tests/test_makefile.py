"""What the Makefile says where it cannot go on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_python_that_is_too_old_is_named_with_its_version(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "demo", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.startswith(
        f"Python 3.11, 3.12, 3.13 or 3.14 is needed, and none of these is one: {old}\n  {old}: Python 3.9.2\n"
        "Install one, or name it: make demo PYTHON="
    )
    assert not (tmp_path / ".venv").exists()
