"""Vision-language models composed of exchangeable parts: encoders, a topology, a fusion and a decoder.

The names below are imported when they are first used, so that a process that only decodes images or reads a
configuration does not load torch. Using ``VLModel`` or ``VLConfig`` registers them with transformers' ``AutoModel``
and ``AutoConfig``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmodel.images import ImageError
    from vlmodel.inference import Prediction, Predictor
    from vlmodel.model import ModelConfig, VLConfig, VLModel, VLOutput
    from vlmodel.processor import Example, ProcessorConfig, VLProcessor

__all__ = [
    "Example",
    "ImageError",
    "ModelConfig",
    "Prediction",
    "Predictor",
    "ProcessorConfig",
    "VLConfig",
    "VLModel",
    "VLOutput",
    "VLProcessor",
]

_MODULES = {
    "Example": "processor",
    "ImageError": "images",
    "ModelConfig": "model",
    "Prediction": "inference",
    "Predictor": "inference",
    "ProcessorConfig": "processor",
    "VLConfig": "model",
    "VLModel": "model",
    "VLOutput": "model",
    "VLProcessor": "processor",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
