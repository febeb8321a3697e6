"""Tiny models with random weights, one for each decoder, pictures, and a service without a model."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.registry.own_examples import ModelExample
from pipelines.serve.service import (
    AnswerStream,
    ModelInfo,
    Service,
    ServiceRequest,
    ServiceResult,
)
from vlmodel.inference import Prediction
from vlmodel.operations.embed import Embeddings
from vlmodel.operations.match import MatchResult

LABELS = ["blue", "circle", "green", "no", "red", "square", "yes"]

DECODERS: dict[str, dict[str, Any]] = {
    "vqa": {"kind": "vqa"},
    "answer": {"kind": "answer", "head": {"width": 16, "depth": 1, "heads": 2}},
    "caption": {"kind": "caption", "head": {"width": 16, "depth": 1, "heads": 2}},
    "llm": {"kind": "answer", "head": {"kind": "llm", "width": 16, "depth": 1, "heads": 2}},
    "matching": {"kind": "matching"},
    "statements": {"kind": "matching", "pairs": "questions"},
    "contrastive": {"kind": "contrastive", "width": 8},
    "classify": {"kind": "classify"},
}
DECODERS["all"] = {
    "kind": "multitask",
    "heads": {name: DECODERS[name] for name in ("vqa", "caption", "matching", "contrastive")},
}


def picture(seed: int = 0, size: tuple[int, int] = (48, 40), kind: str = "PNG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def save_model(folder: Path, decoder: dict[str, Any]) -> Path:
    """Write a tiny model with the given decoder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from vlmodel.config import parse_config
    from vlmodel.model import VLModel
    from vlmodel.model_config import ModelConfig
    from vlmodel.processor import ProcessorConfig, VLProcessor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "colour", "is", "the", "circle", "square", "?", "there", "a"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    parts = {
        "vision": {"name": "resnet18", "stages": 2},
        "language": {"width": 16, "depth": 1, "heads": 2, "expansion": 2},
        "fusion": {"width": 16, "rounds": 1, "heads": 2, "expansion": 2},
        "task": decoder,
    }
    tree = parse_config(ModelConfig, parts)
    processor = VLProcessor(
        ProcessorConfig(image_size=32, max_tokens=12, max_target_tokens=8), tokenizer, LABELS, tree.task.tasks_by_name()
    )
    torch.manual_seed(0)
    VLModel.create_from_config(tree, processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``folder_of("caption")``: a model with that decoder, of ``DECODERS``."""
    return cache(lambda name: save_model(tmp_path_factory.mktemp(name), DECODERS[name]))


@pytest.fixture(scope="session")
def talking_folder(folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model whose texts are words alone, and differ."""
    import torch

    from vlmodel.model import VLModel

    folder = tmp_path_factory.mktemp("talks") / "model"
    shutil.copytree(folder_of("llm"), folder)
    model = VLModel.from_pretrained(folder)
    torch.manual_seed(5)
    for parameter in model.decoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        model.decoder.inner.lm_head.weight[:4] = 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(folder_of: Callable[[str], Path]) -> Path:
    return folder_of("vqa")


class FakeService:
    """Answers by rule and records the requests."""

    def __init__(self) -> None:
        self.model: ModelInfo | None = ModelInfo(
            "fake", "7", ("vqa", "caption", "match", "embed"), labels=3, image_size=(32, 32), resize="squash"
        )
        self.seen: list[tuple[Any, ...]] = []
        self.examples: list[ModelExample] = []

    def answered(self, result: Any) -> ServiceResult:
        assert self.model is not None
        return ServiceResult(result, self.model, {"model": 0.001})

    async def run(self, request: ServiceRequest) -> ServiceResult:
        if request.task == "vqa":
            return await self.answer(request.inputs.get("image"), request.texts, request.top_k, request.attention)
        if request.task == "caption":
            return await self.caption(request.inputs.get("image"), request.top_k, request.attention)
        self.seen.append((request.inputs.get("image"), request.texts))
        if request.task == "match":
            return self.answered(MatchResult("matching", [1.0000001] * len(request.texts)))
        unit = np.array([0.6, 0.8], np.float32)
        text_ND = np.array([unit] * len(request.texts)).reshape(-1, 2)
        return self.answered(Embeddings(None if not request.inputs else unit, text_ND))

    async def answer(self, image: bytes | None, questions: Sequence[str], top_k: int, attention: bool) -> ServiceResult:
        self.seen.append((image, tuple(questions), top_k, attention))
        ranked = [("yes", 0.75), ("no", 0.25)][:top_k]
        return self.answered([Prediction(ranked, weights(attention)) for _ in questions])

    async def caption(self, image: bytes | None, top_k: int, attention: bool) -> ServiceResult:
        self.seen.append((image, top_k, attention))
        return self.answered([Prediction([("a circle", 0.5), ("a square", 0.25)][:top_k], weights(attention))])

    async def stream(self, request: ServiceRequest) -> AnswerStream:
        self.seen.append((request.inputs.get("image"), "streamed", request.attention))
        return self.pieces(request.attention)

    async def pieces(self, attention: bool) -> AnswerStream:
        yield "a "
        yield "circle"
        yield self.answered([Prediction([("a circle", 0.5)], weights(attention))])

    async def check_image(self, image: bytes) -> ServiceResult:
        self.seen.append((image,))
        return self.answered(None)


def ask(
    service: Service, image: bytes, questions: Sequence[str], top_k: int = 1, attention: bool = False
) -> Coroutine[Any, Any, ServiceResult]:
    """Questions about an image."""
    return service.run(ServiceRequest("vqa", {"image": image}, tuple(questions), top_k, attention))


def weights(attention: bool) -> Any:
    return np.full((2, 3), 1 / 6, np.float32) if attention else None


@pytest.fixture
def service() -> FakeService:
    return FakeService()
