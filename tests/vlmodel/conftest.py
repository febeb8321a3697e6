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

from tests.vlmodel.media_files import saved_sound, saved_video
from tests.vlmodel.tiny import collate, for_tasks, tiny_tree
from vlmodel.model import VLModel
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


def further_inputs(number: int) -> dict[str, bytes]:
    """A sound, a clip and a row, of other lengths for each number."""
    rng = np.random.default_rng(number)
    row = (
        b'{"age": 40, "height": 1.8, "colour": "blue"}' if number else b'{"age": null, "height": 1, "colour": "green"}'
    )
    return {
        "sound": saved_sound(rng.normal(0, 0.1, 450 - 150 * number).astype(np.float32), 2000),
        "clip": saved_video(rng.integers(0, 256, (4 - 2 * number, 16, 16, 3), np.uint8)),
        "facts": row,
    }


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    first, second = (encode(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 50), (32, 32)))
    return [
        Example(
            {"image": first, "imu": b"1,2,3\n-1,0,1\n4,4,4\n.5,2,0\n0,0,9", **further_inputs(0)},
            ("what color is the shape?", "is there a red circle?"),
            ("red", "yes"),
            (1.0, 0.5),
        ),
        Example({"image": second, "imu": b"1,1,1\n2,0,2\n0,1,0", **further_inputs(1)}, ("a circle?",), ("no",)),
    ]


@pytest.fixture(scope="session")
def batch(processor: VLProcessor, examples: list[Example]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in collate(processor, examples).items()}


@pytest.fixture
def make_model(processor: VLProcessor) -> Callable[..., Any]:
    """A model of the given parts, for the tasks of its decoder."""

    def make(seed: int = 0, **parts: dict[str, Any]) -> VLModel:
        torch.manual_seed(seed)
        tree = tiny_tree(**parts)
        return VLModel.create_from_config(tree, for_tasks(processor, tree.task.tasks_by_name(), tree)).eval()

    return make
