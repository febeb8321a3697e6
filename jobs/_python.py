"""Checks which Python runs the jobs. This file and those that are imported before ``check_python_version`` run on older
versions too.
"""

from __future__ import annotations

import sys

OLDEST = (3, 11)


def check_python_version() -> None:
    """End the process with a one-line message if Python is too old."""
    if sys.version_info < OLDEST:
        here = ".".join(map(str, sys.version_info[:3]))
        oldest = ".".join(map(str, OLDEST))
        sys.exit(
            f"raylm needs Python {oldest} or newer, and {sys.executable} is {here}; run it with the one of its "
            "environment, as .venv/bin/python, or make one with a newer Python"
        )
