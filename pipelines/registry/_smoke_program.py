"""The program of the smoke test: loads one stored model and answers rows of standard input.

It runs where this repository cannot be imported, so it imports nothing of it.
"""

from __future__ import annotations

import base64
import json
import os
import sys

import mlflow.pyfunc
import pandas as pd  # type: ignore[import-untyped, unused-ignore]

# What the stored code imports. These are imported first, by their own bytecode, as what comes later uses none.
import torchvision
import transformers

__all__ = ["torchvision", "transformers"]


def main(package: str) -> None:
    """Print the answers to the rows as the last line, or end with what is wrong with an image."""
    # Bytecode is neither written nor found anywhere from here on.
    sys.dont_write_bytecode, sys.pycache_prefix = True, os.devnull
    rows = [(base64.b64decode(image), question) for image, question in json.load(sys.stdin)]
    predicted = mlflow.pyfunc.load_model(package).predict(pd.DataFrame(rows, columns=["image", "question"]))
    if errors := [error for error in predicted["error"] if isinstance(error, str)]:
        sys.exit(errors[0])
    print(json.dumps(list(predicted["answer"])))


if __name__ == "__main__":
    main(sys.argv[1])
