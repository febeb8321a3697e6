"""A model small enough to train within a test, and batches for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlmodel.config import load_config
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import ProcessorConfig, VLProcessor

TINY = [
    "vision.stages=1", "vision.projection=16", "language.width=16", "language.heads=2", "language.depth=1",
    "fusion.width=16", "fusion.heads=2", "fusion.rounds=1", "fusion.dropout=0.1", "language.dropout=0.0",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_processor() -> VLProcessor:
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "what", "is", "this", "colour"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    return VLProcessor(ProcessorConfig(image_size=32, max_tokens=8), wrapped, ["red", "green", "blue"])


@pytest.fixture
def tiny_model(tiny_processor: VLProcessor) -> Callable[[], VLModel]:
    def make() -> VLModel:
        torch.manual_seed(0)
        return VLModel.create_from_config(load_config(ModelConfig, None, TINY), tiny_processor)

    return make


def images_and_texts(images: int, texts: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """A collated batch with ``texts[b]`` questions about image ``b``; its answer is the channel that is brightest."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    pixels = rng.integers(0, 120, (images, 32, 32, 3))
    pixels[np.arange(images), :, :, labels] += 120
    n = sum(texts)
    rows = np.repeat(np.arange(images), texts)
    return {
        "image.pixels_BHWC": torch.from_numpy(pixels.astype(np.uint8)),
        "input_ids_NT": torch.from_numpy(rng.integers(2, 6, (n, 4))),
        "text_mask_NT": torch.ones(n, 4, dtype=torch.bool),
        "sample_N": torch.from_numpy(rows),
        "labels_N": torch.from_numpy(labels[rows]),
        "weights_N": torch.ones(n),
    }
