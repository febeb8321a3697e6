"""Time of the model's step with the texts of a batch in groups of like length, against all padded to the longest.

No Ray and no loader: forward, backward and update on collated batches in memory, kinds taking turns in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipelines.train.prefetcher import arrays_to_tensors
from tests.bench.conftest import Figure
from tests.bench.model_steps import WORDS, create_initial_model
from vlmodel.config import parse_config
from vlmodel.lengths import group_texts_by_length
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import ProcessorConfig, VLProcessor

LABELS, SPECIAL = 100, ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "2 layers of width 256": ({"width": 256, "depth": 2, "heads": 4, "dropout": 0.0}, 15),
    "BERT-base": ({"width": 768, "depth": 12, "heads": 12, "dropout": 0.0}, 3),
}
"""Language encoders, and how many steps are measured."""


def processor_of(groups: int) -> VLProcessor:
    words = {word: i for i, word in enumerate([*SPECIAL, *map(str, range(WORDS - len(SPECIAL)))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    return VLProcessor(ProcessorConfig(max_tokens=34, length_groups=groups), wrapped, ["yes", "no"])


def captions(count: int, rng: np.random.Generator) -> list[str]:
    """As long as Flickr8k's: 11 words, give or take 4, and at most 32."""
    lengths = rng.normal(11, 4, count).round().clip(1, 32).astype(int)
    return [" ".join(map(str, rng.integers(0, WORDS - len(SPECIAL), length))) for length in lengths]


def questions(count: int, rng: np.random.Generator) -> list[str]:
    """As long as easy-VQA's: 4 to 9 words."""
    return [" ".join(map(str, rng.integers(0, WORDS - len(SPECIAL), length))) for length in rng.integers(4, 10, count)]


def batch_of(groups: int, texts: list[str], per_image: int) -> dict[str, Any]:
    images, size = -(-len(texts) // per_image), 32
    rng = np.random.default_rng(1)
    arrays = processor_of(groups).tokenize(texts) | {
        "image.pixels_BHWC": rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8),
        "sample_N": np.arange(len(texts)) // per_image,
        "labels_N": rng.integers(0, LABELS, len(texts)),
    }
    return arrays_to_tensors(arrays, torch.device("cpu"))


def model_of(language: dict[str, Any]) -> VLModel:
    """Small but for its language encoder, so that it is this one that is measured."""
    torch.manual_seed(0)
    tree = {
        "vision": {"name": "resnet18", "stages": 1, "position": "none"},
        "language": language,
        "fusion": {"kind": "concat", "width": 64, "dropout": 0.0},
    }
    return create_initial_model(parse_config(ModelConfig, tree), LABELS)


def step_times(model: VLModel, batches: Mapping[int, dict[str, Any]], rounds: int) -> dict[int, float]:
    """Median seconds of a step with each batch, after one that is not measured."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    found: dict[int, list[float]] = {groups: [] for groups in batches}
    for _ in range(1 + rounds):
        for groups, batch in batches.items():
            begun = time.perf_counter()
            loss = model(**batch).loss
            assert loss is not None
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found[groups].append(time.perf_counter() - begun)
    return {groups: statistics.median(values[1:]) for groups, values in found.items()}


@pytest.mark.parametrize("texts", [64, 300])
@pytest.mark.parametrize("made", [captions, questions])
@pytest.mark.parametrize("size", SIZES)
def test_step_of_texts_in_groups(size: str, made: Any, texts: int, figure: Figure) -> None:
    if size == "BERT-base" and texts > 64:
        pytest.skip("minutes, for what 64 texts tell")
    settings, rounds = SIZES[size]
    model = model_of(settings)
    given = made(texts, np.random.default_rng(0))
    batches = {groups: batch_of(groups, given, 5) for groups in (1, 2, 3, 4)}

    medians = step_times(model, batches, rounds)
    for groups, batch in batches.items():
        if groups > 1:
            found = len(batch["distinct_groups_G3"])
            figure(
                f"step, {size}, {texts} {made.__name__} in at most {groups} groups ({found})", medians[groups],
                "s", peer="all padded to the longest", peer_value=medians[1],
            )  # fmt: skip
    assert min(medians.values()) > 0


@pytest.mark.parametrize("most", [2, 3, 4])
def test_finding_the_cuts(most: int, figure: Figure) -> None:
    lengths = np.random.default_rng(0).normal(13, 4, 300).round().clip(3, 34)
    mask_UT = np.arange(34) < lengths[:, None]
    begun = time.perf_counter()
    for _ in range(100):
        group_texts_by_length(mask_UT, most)
    taken = (time.perf_counter() - begun) / 100
    figure(f"cutting 300 captions into at most {most} groups", taken, "s")
    assert taken > 0
