"""The command ``raylm``: ``raylm train --config demo`` runs the job ``train``, as ``python -m jobs.train`` does."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

JOBS = (
    "pipeline", "import_data", "prepare", "index", "knowledge", "train", "evaluate", "predict", "embed", "promote",
    "export", "serve", "retrain", "ablate", "tune",
)  # fmt: skip
"""In the order in which a newcomer meets them."""

_LONGEST = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job that the first argument names with the others; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: raylm JOB [--config FILE] [a.b=value ...]\n\njobs (raylm JOB --help lists the settings):")
        for name in JOBS:
            print(f"  {name:<12} {_first_sentence_of_docstring(name)}")
        return 0
    if arguments[0] == "--version":
        from jobs.job import describe_version

        print(describe_version())
        return 0
    name = arguments[0].replace("-", "_")
    if name not in JOBS:
        close = difflib.get_close_matches(name, JOBS, 1)
        meant = f"did you mean {close[0]}? " if close else ""
        print(f"raylm: there is no job {arguments[0]!r}; {meant}the jobs are {', '.join(JOBS)}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"jobs.{name}").main(arguments[1:])
    return status


def _first_sentence_of_docstring(name: str) -> str:
    """Read what a job does from its docstring, without importing it."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    doc = " ".join((ast.get_docstring(ast.parse(source)) or "").replace("``", "").split())
    sentence = doc.partition(". ")[0].partition("; ")[0].rstrip(".")
    return sentence if len(sentence) <= _LONGEST else sentence.partition(": ")[0].partition(" (")[0]


if __name__ == "__main__":
    sys.exit(main())
