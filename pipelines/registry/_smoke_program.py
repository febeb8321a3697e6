"""The program of the smoke test: loads a stored model and answers rows from standard input.

It runs where this repository cannot be imported.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import Any

import mlflow.pyfunc
import pandas as pd  # type: ignore[import-untyped, unused-ignore]

# The stored code imports these. They are imported first, with their bytecode, as it is disabled for the stored code.
import torchvision
import transformers

__all__ = ["torchvision", "transformers"]


def main(package: str) -> None:
    """Print the answers to the rows as the last line, or exit with the error of an input."""
    # From here on bytecode is neither written nor found anywhere.
    sys.dont_write_bytecode, sys.pycache_prefix = True, os.devnull
    model = mlflow.pyfunc.load_model(package)
    columns = model.metadata.get_input_schema().input_names()
    rows = [[_to_cells(row).get(name) for name in columns] for row in json.load(sys.stdin)]
    predicted = model.predict(pd.DataFrame(rows, columns=columns, dtype=object))
    if errors := [error for error in predicted["error"] if isinstance(error, str)]:
        sys.exit(errors[0])
    print(json.dumps(list(predicted["answer"])))


def _to_cells(row: dict[str, Any]) -> dict[str, Any]:
    return {**{name: base64.b64decode(data) for name, data in row["inputs"].items()}, "question": row["text"]}


if __name__ == "__main__":
    main(sys.argv[1])
