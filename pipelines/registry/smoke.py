"""The smoke test of a stored model: does it answer in a fresh process that has nothing of this repository?

This file is also the program of that process. It is started in isolated mode, where neither the working directory nor
PYTHONPATH can lend the model code that is not stored with it.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory


class SmokeError(Exception):
    """A stored model that does not load or does not answer by itself."""


def answers_in_fresh_process(package: Path, rows: Sequence[tuple[bytes, str]], timeout_s: float = 600) -> list[str]:
    """Load the MLflow model in ``package`` with unpickling forbidden and answer ``rows`` of (encoded image, question).

    Raises:
        SmokeError: it fails or takes longer than ``timeout_s`` seconds; the message ends with what it printed last.
    """
    request = json.dumps([[base64.b64encode(image).decode(), question] for image, question in rows])
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-I", __file__, str(package.absolute())]
    with TemporaryDirectory() as nowhere:
        try:
            done = subprocess.run(
                command, input=request, capture_output=True, text=True, cwd=nowhere, env=environment, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            raise SmokeError(f"model {str(package)!r} did not answer within {timeout_s:g} s") from None
    if done.returncode != 0:
        raise SmokeError(f"model {str(package)!r} does not work in a fresh process: ...{done.stderr.strip()[-1500:]}")
    answers: list[str] = json.loads(done.stdout.splitlines()[-1])
    return answers


def main(package: str) -> None:
    """Read rows from standard input and print the answers as the last line."""
    import mlflow.pyfunc
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

    rows = [(base64.b64decode(image), question) for image, question in json.load(sys.stdin)]
    table = pd.DataFrame(rows, columns=["image", "question"])
    predicted = mlflow.pyfunc.load_model(package).predict(table)
    if errors := [error for error in predicted["error"] if isinstance(error, str)]:
        raise SmokeError(errors[0])
    print(json.dumps(list(predicted["answer"])))


if __name__ == "__main__":
    main(sys.argv[1])
