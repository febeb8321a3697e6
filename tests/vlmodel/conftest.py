"""A tiny tokenizer, processor and model, and a batch of two pictures with three texts."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vlmodel.config import parse
from vlmodel.model import ModelConfig, VLModel
from vlmodel.processor import Example, ProcessorConfig, VLProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "color", "is", "the", "shape", "a", "red", "circle", "there", "?"]
LABELS = ["yes", "no", "red", "blue"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture(scope="session")
def processor(tokenizer: PreTrainedTokenizerFast) -> VLProcessor:
    return VLProcessor(ProcessorConfig(image_size=32, max_tokens=12), tokenizer, LABELS)


def encode(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    first, second = (encode(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 50), (32, 32)))
    return [
        Example(first, ("what color is the shape?", "is there a red circle?"), ("red", "yes"), (1.0, 0.5)),
        Example(second, ("a circle?",), ("no",)),
    ]


@pytest.fixture(scope="session")
def batch(processor: VLProcessor, examples: list[Example]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in processor.collate(examples).items()}


TINY: dict[str, dict[str, Any]] = {
    "vision": {"name": "resnet18", "stages": 1, "projection": 16},
    "language": {"width": 16, "depth": 1, "heads": 2, "positions": 12, "dropout": 0.0},
    "fusion": {"width": 16, "dropout": 0.0},
}


def tiny_tree(**parts: dict[str, Any]) -> ModelConfig:
    """Tiny parts, with the given settings on top; another kind takes only the width of those."""
    tree: dict[str, dict[str, Any]] = {}
    for room in ("vision", "language", "topology", "fusion", "decoder"):
        changes = parts.get(room, {})
        defaults = TINY.get(room, {})
        if "kind" in changes and changes["kind"] not in ("cnn", "transformer"):
            defaults = {key: value for key, value in defaults.items() if key in ("width", "dropout")}
        tree[room] = {**defaults, **changes}
    return parse(ModelConfig, tree)


@pytest.fixture
def make_model(processor: VLProcessor) -> Callable[..., Any]:
    def make(seed: int = 0, **parts: dict[str, Any]) -> VLModel:
        torch.manual_seed(seed)
        return VLModel.from_tree(tiny_tree(**parts), processor).eval()

    return make
