"""A tiny model with random weights, pictures, and a service without a model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.serve.service import Answered, ModelInfo
from vlmodel.inference import Prediction

LABELS = ["blue", "circle", "green", "no", "red", "square", "yes"]


def picture(seed: int = 0, size: tuple[int, int] = (48, 40), kind: str = "PNG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from vlmodel.config import parse
    from vlmodel.model import ModelConfig, VLModel
    from vlmodel.processor import ProcessorConfig, VLProcessor

    words = ["[PAD]", "[UNK]", "what", "colour", "is", "the", "circle", "square", "?", "there", "a"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]")
    tree = {
        "vision": {"name": "resnet18", "stages": 2},
        "language": {"width": 16, "depth": 1, "heads": 2, "expansion": 2},
        "fusion": {"width": 16, "rounds": 1, "heads": 2, "expansion": 2},
    }
    processor = VLProcessor(ProcessorConfig(image_size=32, max_tokens=12), tokenizer, LABELS)
    torch.manual_seed(0)
    model = VLModel.from_tree(parse(ModelConfig, tree), processor)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class FakeService:
    """Answers by rule: what it was asked comes back, so a test can see what reached it."""

    def __init__(self) -> None:
        self.model: ModelInfo | None = ModelInfo("fake", "7", labels=3, image_size=32, resize="squash")
        self.seen: list[tuple[bytes, tuple[str, ...], int, bool]] = []

    async def answer(self, image: bytes, questions: Sequence[str], top_k: int, attention: bool) -> Answered:
        assert self.model is not None
        self.seen.append((image, tuple(questions), top_k, attention))
        ranked = [("yes", 0.75), ("no", 0.25)][:top_k]
        weights = np.full((2, 3), 1 / 6, np.float32) if attention else None
        return Answered([Prediction(ranked, weights) for _ in questions], self.model, {"model": 0.001})


@pytest.fixture
def service() -> FakeService:
    return FakeService()
