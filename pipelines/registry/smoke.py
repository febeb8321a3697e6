"""The smoke test of a stored model: does it answer in a fresh process that cannot import this repository?

That process runs in isolated mode: neither the working directory nor PYTHONPATH can provide code that is not stored
with the model. It runs the stored sources, which the manifest covers, and neither reads nor writes bytecode there.
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
from typing import Any

from pipelines.registry.errors import SmokeError
from pipelines.report.progress import reported_wait
from vlmodel.processor import Example

PROGRAM = Path(__file__).with_name("_smoke_program.py")


def answer_in_fresh_process(package: Path, examples: Sequence[Example], timeout_s: float = 600) -> list[str]:
    """Load the MLflow model in ``package`` with unpickling forbidden, and answer examples with one text each.

    Raises:
        SmokeError: it fails or takes longer than ``timeout_s`` seconds; the message ends with its last output.
    """
    request = json.dumps([_to_row(example) for example in examples])
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    with TemporaryDirectory() as nowhere:
        # Isolated mode ignores Python's environment variables, PYTHONDONTWRITEBYTECODE among them.
        command = [sys.executable, "-I", "-B", str(PROGRAM), str(package.absolute())]
        try:
            with reported_wait("smoke test", timeout_s):
                done = subprocess.run(
                    command, input=request, capture_output=True, text=True, cwd=nowhere, env=environment,
                    timeout=timeout_s,
                )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise SmokeError(f"model {str(package)!r} did not answer within {timeout_s:g} s") from None
    if done.returncode != 0:
        raise SmokeError(f"model {str(package)!r} does not work in a fresh process: ...{done.stderr.strip()[-1500:]}")
    answers: list[str] = json.loads(done.stdout.splitlines()[-1])
    return answers


def _to_row(example: Example) -> dict[str, Any]:
    inputs = {name: base64.b64encode(data).decode() for name, data in example.inputs.items()}
    return {"inputs": inputs, "text": example.texts[0]}
