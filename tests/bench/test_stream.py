"""Images a second through the stream, against decoding alone in a bare loop and against webdataset with a DataLoader.

1,000 photograph-like JPEGs of 500 x 375 with captions become batches of 64 images of 224 x 224 and token ids.
"""

from __future__ import annotations

import io
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from pipelines.data.augment import AugmentConfig
from pipelines.data.corpus import corpus, train_tokenizer
from pipelines.data.index import Index, IndexConfig, build_index
from pipelines.data.loader import Source, TrainingParts
from pipelines.data.plan import Schedule
from pipelines.data.sample import Texts
from pipelines.data.shards import ShardWriter
from pipelines.data.stream import StreamConfig, stream
from tests.bench.conftest import Figure
from vlmodel.fields import Fields
from vlmodel.processor import Example, ProcessorConfig, VLProcessor

IMAGES, BATCH, ROUNDS, WORKERS = 1000, 64, 3, 2
WORDS = ("a", "dog", "cat", "man", "woman", "runs", "sits", "over", "the", "grass", "water", "red", "small", "near")
READS = {"": Fields(reads="captions", target="none")}


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


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Source:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    pool = [photograph(rng) for _ in range(100)]
    with ShardWriter(folder, "train", max_samples=125) as writer:
        for number in range(IMAGES):
            captions = tuple(" ".join(rng.choice(WORDS, 10)) for _ in range(5))
            # Each image differs, so that nothing takes it for a copy: a JPEG ends at its end marker.
            writer.add(f"{number:06d}", pool[number % 100] + number.to_bytes(4, "little"), "jpg", Texts(captions, ()))
    build_index(str(folder), IndexConfig(validation_fraction=0.0))
    index = Index.open(str(folder))
    processor = VLProcessor(ProcessorConfig(image_size=224), train_tokenizer(corpus(index), 200), [], READS)
    processor.save_pretrained(folder / "p")
    return Source(str(folder), index.hash, "train", str(folder / "p"))


def rate(batches: Iterator[object]) -> float:
    """Images a second after the first batch."""
    next(batches)
    begun = time.perf_counter()
    done = sum(1 for _ in batches)
    return done * BATCH / (time.perf_counter() - begun)


def ours(source: Source) -> float:
    schedule = Schedule(source.plan(shuffle=True), BATCH, 1)
    parts = TrainingParts(source, schedule, 0, 1, 1, AugmentConfig())
    return rate(stream(parts, StreamConfig(tasks=WORKERS, batches_per_task=4, memory_mb=64)))


def peer(source: Source) -> float:
    processor = VLProcessor.from_pretrained(source.processor)

    def example(sample: dict[str, bytes]) -> tuple[np.ndarray, tuple[str, ...]]:
        return processor.decode(sample["jpg"]), tuple(json.loads(sample["json"])["captions"])

    def collate(rows: list[tuple[np.ndarray, tuple[str, ...]]]) -> dict[str, np.ndarray]:
        return processor.collate_tasks([r[0] for r in rows], {"": [Example(b"", r[1]) for r in rows]})

    tars = sorted(map(str, Path(source.tars).glob("*.tar")))
    dataset = webdataset.WebDataset(tars, shardshuffle=100, seed=0).shuffle(1000).map(example).batched(BATCH, collate)
    return rate(iter(DataLoader(dataset, batch_size=None, num_workers=WORKERS)))


def _decode_all(share: tuple[str, list[bytes]]) -> int:
    processor = VLProcessor.from_pretrained(share[0])
    return sum(processor.decode(data).shape[0] > 0 for data in share[1])


def limit(source: Source) -> float:
    """Decoding and resizing alone, in a bare loop on each core, bytes in memory."""
    images = [sample["jpg"] for tar in sorted(Path(source.tars).glob("*.tar"))
              for sample in webdataset.WebDataset(str(tar), shardshuffle=False)]  # fmt: skip
    shares = [(source.processor, list(images[n::WORKERS])) for n in range(WORKERS)]
    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(_decode_all, [(source.processor, images[:2])] * WORKERS))  # start the processes
        begun = time.perf_counter()
        done = sum(pool.map(_decode_all, shares))
        return done / (time.perf_counter() - begun)


def test_stream(source: Source, figure: Figure) -> None:
    runs: dict[str, Callable[[Source], float]] = {"ours": ours, "peer": peer, "limit": limit}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _, name in itertools.product(range(ROUNDS), runs):
        found[name].append(runs[name](source))
    medians = {name: statistics.median(values) for name, values in found.items()}
    figure(
        "stream, images to batches", medians["ours"], "images/s",
        peer="webdataset + DataLoader, same decode", peer_value=medians["peer"], limit=medians["limit"],
    )  # fmt: skip
    assert medians["ours"] > 0
