"""JPEGs that cost what photographs cost, and tars of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.stream.dataset import Source
from pipelines.data.tars.shards import ShardWriter
from pipelines.data.texts.corpus import iterate_texts_of_split, train_tokenizer
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.sample import SampleTexts
from vlmodel.tasks import contrastive

WORDS = ("a", "dog", "cat", "man", "woman", "runs", "sits", "over", "the", "grass", "water", "red", "small", "near")
READS = {"": contrastive.Config()}


class Data(NamedTuple):
    """The tars, and some files of their images."""

    source: Source
    jpegs: list[bytes]


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG that costs what a photograph costs: smooth structure at several scales, and some grain."""
    image = np.zeros((375, 500, 3), np.float32)
    for cells in (4, 12, 40, 120):
        noise = rng.normal(0, 60 / cells**0.4, (cells, cells, 3)).astype(np.float32)
        layers = [Image.fromarray(noise[..., c]).resize((500, 375), Image.Resampling.BICUBIC) for c in range(3)]
        image += np.stack([np.asarray(layer) for layer in layers], axis=-1)
    image += rng.normal(0, 4, image.shape)
    out = io.BytesIO()
    Image.fromarray((image + 128).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def write(folder: Path, images: int, side: int) -> Data:
    """Photographs of 500 x 375 with five captions each, 250 to a tar, indexed, with a processor."""
    rng = np.random.default_rng(0)
    pool = [photograph(rng) for _ in range(100)]
    # Each image differs, so that nothing takes it for a copy: a JPEG ends at its end marker.
    jpegs = [pool[number % 100] + number.to_bytes(4, "little") for number in range(images)]
    with ShardWriter(folder, "train", max_samples=250) as writer:
        for number, jpeg in enumerate(jpegs):
            captions = tuple(" ".join(rng.choice(WORDS, 10)) for _ in range(5))
            writer.add(f"{number:06d}", {"image": (jpeg, "jpg")}, SampleTexts(captions, ()))
    build_index(str(folder), IndexConfig(validation_fraction=0.0))
    index = Index.open(str(folder))
    processor = VLProcessor(
        ProcessorConfig(image_size=side), train_tokenizer(iterate_texts_of_split(index), 200), [], READS
    )
    processor.save_pretrained(folder / "p")
    return Data(Source(str(folder), index.hash, "train", str(folder / "p")), jpegs[:1000])
