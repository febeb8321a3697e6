"""A tiny model, saved as the inference part of a checkpoint, and a picture to ask it about."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipelines.registry.config import RegistryConfig
from pipelines.registry.registry import Registry
from pipelines.registry.version_score import VersionScore
from pipelines.tracking.address import TrackingConfig
from pipelines.tracking.tracker import Tracker
from vlmodel.config import parse_config
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, ProcessorConfig, VLProcessor

QUESTION = "what colour is the shape?"
FAST = RegistryConfig(smoke_test=False)
TREE = {
    "vision": {"stages": 1, "grid": 2},
    "language": {"width": 16, "depth": 1, "heads": 2, "positions": 16},
    "fusion": {"width": 16, "rounds": 1, "heads": 2},
}


@pytest.fixture(autouse=True)
def bytecode_as_before() -> Iterator[None]:
    """A stored model that MLflow loads in this process turns bytecode off for all of it."""
    before = sys.dont_write_bytecode, sys.pycache_prefix
    yield
    sys.dont_write_bytecode, sys.pycache_prefix = before


def save_model(folder: Path, seed: int, tower: Path | None = None) -> Path:
    """Save a model with new weights.

    Args:
        tower: a state dict of torchvision's ResNet-18, on which the model is built, frozen.
    """
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "colour", "is", "the", "shape", "?"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    processor = VLProcessor(ProcessorConfig(image_size=32, max_tokens=8), fast, ["yes", "no", "red", "blue"])
    torch.manual_seed(seed)
    vision = {"vision": {"grid": 2, "projection": 16, "weights": str(tower), "frozen": True}} if tower else {}
    model = VLModel.create_from_config(parse_config(ModelConfig, TREE | vision), processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_reading_model(folder: Path, seed: int) -> Path:
    """Save a model with new weights that reads the facts of what a question names."""
    plain = VLProcessor.from_pretrained(save_model(folder.with_name(f"{folder.name}-plain"), seed))
    knowledge = {"kind": "injection", "max_fact_tokens": 8, "link": {"by": "names"}}
    language = {"width": 16, "depth": 1, "heads": 2, "positions": 24}
    tree = parse_config(ModelConfig, {**TREE, "language": language, "knowledge": knowledge})
    processor = VLProcessor(plain.config, plain.tokenizer, plain.labels, plain.tasks, knowledge=tree.knowledge)
    torch.manual_seed(seed)
    VLModel.create_from_config(tree, processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("checkpoint") / "model", seed=0)


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("other") / "model", seed=1)


def picture(seed: int) -> bytes:
    png = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(png, "PNG")
    return png.getvalue()


def asked(seed: int = 0, text: str = QUESTION) -> Example:
    return Example({"image": picture(seed)}, (text,))


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    return [picture(seed) for seed in range(3)]


@pytest.fixture
def score() -> VersionScore:
    return VersionScore(metric="accuracy", value=0.9, floor=0.67, index_hash="ab" * 32, split="val", count=1000)


@pytest.fixture
def run_id(storage: str, tracking: TrackingConfig) -> str:
    with Tracker.open(tracking, storage, "run-1") as tracker:
        tracker.log_params({"lr": 0.1})
    return tracker.run_id


@pytest.fixture
def registry(storage: str, tracking: TrackingConfig) -> Registry:
    return Registry.open(tracking, storage, FAST)


@pytest.fixture
def example(pictures: list[bytes]) -> Example:
    return Example({"image": pictures[0]}, (QUESTION,))


def stored_file(storage: str, name: str) -> Path:
    """The file in the artifact store, not in the cache of downloads."""
    (found,) = (Path(storage) / "mlartifacts").rglob(name)
    return found
