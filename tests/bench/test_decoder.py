"""Whether a model learns less from images that are decoded at a part of their size: ours beside Pillow's whole decode.

Flickr8k's photographs (224 x 224, as they come here) at 56 x 56, the largest size for which a JPEG of theirs is decoded
at half its size: the least that is ever kept, twice the target, so the worst that it can do. For each of three
seeds one model is trained on either's pixels, with the same samples in the same order, and each is then asked with
both: captions find their photograph among 200 that neither has seen, cut from the training list. No Ray, no loader; on
a GPU where there is one. BENCH_SEEDS=0,1 takes other seeds.
"""

from __future__ import annotations

import hashlib
import io
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.data.importers.flickr import Config as Flickr
from pipelines.data.importing.importer import SourceSample
from pipelines.data.stream.augment import AugmentConfig, augment_image
from pipelines.data.texts.corpus import train_tokenizer
from pipelines.train.config import OptimizerConfig, StepConfig
from pipelines.train.prefetcher import arrays_to_tensors
from pipelines.train.step import TrainStep
from tests.bench.conftest import Figure
from vlmodel.config import parse_config
from vlmodel.images.decoders.cpu import decode_image
from vlmodel.metrics.retrieval import retrieval_scores
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, ProcessorConfig, VLProcessor
from vlmodel.tasks import contrastive

SIDE, HELD_OUT, BATCH, EPOCHS = 56, 200, 64, 40
SEEDS = [int(seed) for seed in os.environ.get("BENCH_SEEDS", "0,1,2").split(",")]
MODEL: dict[str, Any] = {
    "vision": {"name": "resnet18", "stages": 4, "projection": 192},
    "language": {"width": 192, "pooling": "mean"},
    "task": {"kind": "contrastive"},
}
OPTIMIZER = OptimizerConfig(backbone_lr=1e-3, head_lr=1e-3, weight_decay=0.05)
AUGMENT = AugmentConfig(flip=0.5, min_area=0.6)

Pixels = Sequence[np.ndarray]


def by_pillow(jpeg: bytes) -> np.ndarray:
    """All of the file, and Pillow's filter."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def by_ours(jpeg: bytes) -> np.ndarray:
    return decode_image(jpeg, SIDE, "squash", 10**8)


DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {"ours": by_ours, "Pillow": by_pillow}


def photographs(folder: Path) -> tuple[list[SourceSample], list[SourceSample]]:
    """To learn from, and held out."""
    records = [
        r for r in Flickr(folder=str(folder)).read().samples if isinstance(r, SourceSample) and r.split == "train"
    ]
    records.sort(key=lambda record: hashlib.sha1(record.key.encode()).hexdigest())
    return records[HELD_OUT:], records[:HELD_OUT]


def batch_of(
    processor: VLProcessor, pixels: Pixels, records: Sequence[SourceSample], device: torch.device
) -> dict[str, Any]:
    rows = {"": [Example({}, record.texts.captions) for record in records]}
    return arrays_to_tensors(processor.collate_tasks(pixels, rows), device)


def trained(processor: VLProcessor, pixels: Pixels, records: Sequence[SourceSample], seed: int) -> VLModel:
    """Changes of images, the order of samples and the first weights are functions of the seed alone."""
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = VLModel.create_from_config(parse_config(ModelConfig, MODEL), processor)
    model.to(device)  # type: ignore[arg-type]
    steps = len(records) // BATCH
    step = TrainStep(model, OPTIMIZER, StepConfig(), steps=EPOCHS * steps, seed=seed)
    rng = np.random.default_rng(seed)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(records))[: steps * BATCH].reshape(steps, BATCH)
        for number, chosen in enumerate(order.tolist()):
            changed = [augment_image(pixels[i], AUGMENT, rng) for i in chosen]
            step(epoch * steps + number, [batch_of(processor, changed, [records[i] for i in chosen], device)], 1)
    return model.eval()


@torch.no_grad()
def recall(model: VLModel, processor: VLProcessor, pixels: Pixels, records: Sequence[SourceSample]) -> float:
    """Share of captions with their photograph among the first ten."""
    head: Any = model.decoder
    given = batch_of(processor, pixels, records, next(model.parameters()).device)
    image_BD, text_ND = head.embed(model.encode_task("", model.encode_inputs(given), given))
    return retrieval_scores(image_BD, text_ND, given["sample_N"])["text_to_image_recall_at_10"]


def pairs(values: Sequence[float]) -> Iterator[float]:
    """How far apart any two are."""
    return (abs(a - b) for i, a in enumerate(values) for b in values[:i])


def test_accuracy(shared_data: Callable[[str], Path], figure: Figure) -> None:
    learn, held_out = photographs(shared_data("flickr8k-subset"))
    captions = chain.from_iterable(record.texts.captions for record in learn)
    config = ProcessorConfig(image_size=SIDE, max_tokens=32)
    processor = VLProcessor(config, train_tokenizer(captions, 2000), [], {"": contrastive.Config()})
    seen, asked = (
        {name: [decoder(record.inputs["image"][0]) for record in records] for name, decoder in DECODERS.items()}
        for records in (learn, held_out)
    )
    errors = [np.square(a.astype(float) - b).mean() for a, b in zip(asked["ours"], asked["Pillow"], strict=True)]
    figure(f"photographs at {SIDE} x {SIDE} against Pillow's", float(10 * np.log10(255**2 / np.mean(errors))), "dB")

    found: dict[tuple[str, str], list[float]] = {(a, b): [] for a in DECODERS for b in DECODERS}
    for seed in SEEDS:
        for learned in DECODERS:
            model = trained(processor, seen[learned], learn, seed)
            for given in DECODERS:
                found[learned, given].append(recall(model, processor, asked[given], held_out))
    for (learned, given), values in found.items():
        print(f"trained on {learned}'s, asked with {given}'s: {', '.join(f'{value:.3f}' for value in values)}")
    mean = {kind: statistics.mean(values) for kind, values in found.items()}
    figure(
        "recall@10, trained on our pixels", mean["ours", "ours"], "",
        peer="trained on Pillow's", peer_value=mean["Pillow", "Pillow"],
    )  # fmt: skip
    figure(
        "recall@10, trained on ours, asked with Pillow's", mean["ours", "Pillow"], "",
        peer="asked with ours", peer_value=mean["ours", "ours"],
    )  # fmt: skip
    figure("recall@10, two seeds apart", statistics.mean(pairs(found["Pillow", "Pillow"])), "")
    assert min(mean.values()) > 2 * 10 / HELD_OUT  # twice chance: there was something to lose
