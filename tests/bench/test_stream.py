"""Images a second from tars to batches that a model takes, against the limit of the machine and what others use.

4,000 photograph-like JPEGs of 500 x 375 with five captions each become batches of 64: pixels of 224 x 224, normalised,
in float32, and token ids. Everybody delivers the same, on two cores, to the process of an actor, as training workers
are: Ray gives these less of a busy core than its driver. Rates are those after the first batch, the median of three
rounds in turn. BENCH_IMAGES=N takes fewer.
"""

from __future__ import annotations

import io
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import webdataset
from PIL import Image
from ray._private.internal_api import node_stats
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.stream.augment import AugmentConfig
from pipelines.data.stream.config import PixelCacheConfig, StreamConfig
from pipelines.data.stream.dataset import Source, enable_pixel_cache
from pipelines.data.stream.loader import MicroBatches
from pipelines.data.stream.plan import StepSchedule
from pipelines.data.stream.stream import stream_batches
from pipelines.train.prefetcher import arrays_to_tensors
from tests.bench.conftest import Figure
from tests.bench.photographs import Data, write
from vlmodel.processor import Example, VLProcessor

IMAGES, BATCH, ROUNDS, WORKERS, SIDE = int(os.environ.get("BENCH_IMAGES", 4000)), 64, 3, 2, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STREAM = StreamConfig(workers=WORKERS)

Decode = Callable[[bytes], np.ndarray]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Data:
    return write(tmp_path_factory.mktemp("photographs"), IMAGES, SIDE)


class Normalise:
    """uint8 (B, H, W, C) to float32 (B, C, H, W), into memory that is used again."""

    def __init__(self) -> None:
        self._out_BCHW = torch.empty(BATCH, 3, SIDE, SIDE)
        self._scale = (1 / (255 * torch.tensor(STD)))[:, None, None]
        self._shift = (torch.tensor(MEAN) / torch.tensor(STD))[:, None, None]

    def __call__(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        out_BCHW = self._out_BCHW[: len(pixels_BHWC)]
        return out_BCHW.copy_(pixels_BHWC.permute(0, 3, 1, 2)).mul_(self._scale).sub_(self._shift)


def by_pillow(jpeg: bytes) -> np.ndarray:
    """As most do: all of the file, Pillow's filter."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def by_ours(source: Source) -> Decode:
    return VLProcessor.from_pretrained(source.processor).decode_image


def rate(batches: Iterator[object]) -> float:
    """Images a second after the first batch."""
    next(batches)
    begun = time.perf_counter()
    done = sum(1 for _ in batches)
    return done * BATCH / (time.perf_counter() - begun)


def batches(
    data: Data, config: StreamConfig = STREAM, start: int = 0, source: Source | None = None
) -> Generator[dict[str, Any]]:
    """Ours: exact order, checked bytes, cursor."""
    source = source or data.source
    parts = MicroBatches(source, StepSchedule(source.plan_order(shuffle=True), BATCH, 1), 0, 1, 1, AugmentConfig())
    normalise = Normalise()
    for arrays in stream_batches(parts, config, start=start):
        tensors = arrays_to_tensors(arrays, torch.device("cpu"))
        tensors["image.pixels_BHWC"] = normalise(tensors["image.pixels_BHWC"])
        yield tensors


def dataloader(data: Data, decode: Decode, workers: int = WORKERS) -> float:
    """webdataset and a DataLoader, everything in its workers, as its documentation has it."""
    processor = VLProcessor.from_pretrained(data.source.processor)
    finish = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def example(sample: dict[str, bytes]) -> tuple[torch.Tensor, tuple[str, ...]]:
        return finish(decode(sample["jpg"])), tuple(json.loads(sample["json"])["captions"])

    def collate(rows: list[tuple[torch.Tensor, tuple[str, ...]]]) -> dict[str, object]:
        texts = processor.collate_rows({"": [Example({}, row[1]) for row in rows]})
        return texts | {"pixels": torch.stack([row[0] for row in rows])}

    tars = sorted(map(str, Path(data.source.tars).glob("*.tar")))
    dataset = webdataset.WebDataset(tars, shardshuffle=100, seed=0).shuffle(1000).map(example).batched(BATCH, collate)
    return rate(iter(DataLoader(dataset, batch_size=None, num_workers=workers, worker_init_fn=_one_thread)))


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def ray_idiom(data: Data) -> float:
    """Ray Data as its documentation has it: read_webdataset, map, iter_torch_batches; not shuffled."""
    processor = VLProcessor.from_pretrained(data.source.processor)
    finish = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def example(row: dict[str, Any]) -> dict[str, Any]:
        image = Image.fromarray(row["jpg"]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        ids = processor.tokenizer(row["json"]["captions"], padding="max_length", max_length=32)["input_ids"]
        return {"pixels": finish(image).numpy(), "ids": np.array(ids)}

    tars = sorted(map(str, Path(data.source.tars).glob("*.tar")))
    dataset = ray.data.read_webdataset(tars).map(example)
    return rate(iter(dataset.iter_torch_batches(batch_size=BATCH)))


def limit(data: Data, how: str) -> float:
    """Decoding, resizing and normalising alone, in a bare loop on each core, files in memory."""
    shares = [(how, data.source, data.jpegs[n::WORKERS]) for n in range(WORKERS)]
    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(_alone, [(how, data.source, data.jpegs[:2])] * WORKERS))  # start the processes
        begun = time.perf_counter()
        done = sum(pool.map(_alone, shares * max(1, IMAGES // len(data.jpegs))))
        return done / (time.perf_counter() - begun)


def _alone(share: tuple[str, Source, list[bytes]]) -> int:
    how, source, jpegs = share
    torch.set_num_threads(1)
    decode, normalise = by_pillow if how == "pillow" else by_ours(source), Normalise()
    pixels_BHWC = np.empty((BATCH, SIDE, SIDE, 3), np.uint8)
    for begin in range(0, len(jpegs), BATCH):
        for place, jpeg in enumerate(jpegs[begin : begin + BATCH]):
            pixels_BHWC[place] = decode(jpeg)
        normalise(torch.from_numpy(pixels_BHWC))
    return len(jpegs)


class Consumer:
    """Measures where a training worker would stand."""

    def __init__(self, data: Data, kept: Source) -> None:
        torch.set_num_threads(1)
        self._data, self._kept = data, kept

    def rate(self, name: str) -> float:
        data = self._data
        match name:
            case "ours":
                return rate(batches(data))
            case "processes":
                return rate(batches(data, StreamConfig(decoding="processes", workers=WORKERS)))
            case "kept":
                return rate(batches(data, source=self._kept))
            case "fast dataloader":
                return dataloader(data, by_ours(data.source))
            case "pillow dataloader":
                return dataloader(data, by_pillow)
            case "ray idiom":
                return ray_idiom(data)
            case _:
                return limit(data, name)

    def peak_mb(self) -> float:
        """The largest memory that this process has had."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

    def first(self, start: int) -> float:
        """Seconds to the first batch."""
        begun = time.perf_counter()
        made = batches(self._data, start=start)
        next(made)
        seconds = time.perf_counter() - begun
        made.close()
        return seconds


@pytest.fixture
def consumer(data: Data, tmp_path: Path) -> Any:
    kept = enable_pixel_cache(data.source, PixelCacheConfig(keep="always", folder=str(tmp_path)), 2)
    actor: Any = ray.remote(num_cpus=0)(Consumer)
    return actor.remote(data, kept)


def in_turn(ask: Any, runs: Sequence[Any], rounds: int = ROUNDS) -> list[float]:
    """The median of each."""
    found = [[ray.get(ask.remote(run)) for run in runs] for _ in range(rounds)]
    return [statistics.median(values) for values in zip(*found, strict=True)]


def test_stream(consumer: Any, figure: Figure) -> None:
    ray.get([consumer.rate.remote("kept"), consumer.rate.remote("processes")])  # pixels are kept, processes are up
    peers = {
        "pillow dataloader": "webdataset + DataLoader, Pillow",
        "fast dataloader": "webdataset + DataLoader, our decoder",
        "ray idiom": "read_webdataset + map",
    }
    runs = ["ours", "processes", "kept", "decoder", "pillow", *peers]
    medians = dict(zip(runs, in_turn(consumer.rate, runs), strict=True))
    ours, best = medians["ours"], medians["decoder"]
    for peer, name in peers.items():
        figure("stream", ours, "images/s", peer=name, peer_value=medians[peer], limit=best)
    by_processes = medians["processes"]
    figure("stream, decoded by processes", by_processes, "images/s", peer="by threads", peer_value=ours, limit=best)
    figure("stream, pixels kept", medians["kept"], "images/s", peer="stream", peer_value=ours)
    figure("decode, resize, normalise alone", best, "images/s", peer="Pillow", peer_value=medians["pillow"])
    assert min(medians.values()) > 0


def test_first_batch(consumer: Any, figure: Figure) -> None:
    """Seconds to the first batch, with everything imported, at the start and in the middle of an epoch."""
    ray.get(consumer.first.remote(0))
    start, middle = in_turn(consumer.first, [0, IMAGES // BATCH // 2], rounds=5)
    figure("first batch", start, "s")
    figure("first batch at a cursor", middle, "s", peer="at the start", peer_value=start)
    assert start > 0


def test_memory(data: Data, figure: Figure, tmp_path: Path) -> None:
    """Peak memory of the consumer and of the object store, over an epoch of all tars and of a quarter of them."""
    quarter = tmp_path / "quarter"
    quarter.mkdir()
    for tar in sorted(Path(data.source.tars).glob("*.tar"))[::4]:
        os.link(tar, quarter / tar.name)
    build_index(str(quarter), IndexConfig(validation_fraction=0.0))
    fewer = Source(str(quarter), Index.open(str(quarter)).hash, "train", data.source.processor)
    peaks = []
    for source in (fewer, data.source):
        actor: Any = ray.remote(num_cpus=0)(Consumer)
        consumer = actor.remote(data._replace(source=source), source)
        ray.get(consumer.rate.remote("ours"))
        peaks.append(ray.get(consumer.peak_mb.remote()))
        ray.kill(consumer)
    few, many = peaks
    (node,) = ray.nodes()
    spilled = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats.spilled_bytes_total
    figure("peak memory of a stream's consumer", many, "MB", peer="a quarter of the data", peer_value=few)
    figure("spilled by the object store", spilled / 1e6, "MB")
    assert spilled == 0


def test_pixels(data: Data, figure: Figure) -> None:
    """How near the pixels are to those of Pillow's antialiased resize."""
    decode = by_ours(data.source)
    errors = [np.square(decode(jpeg).astype(float) - by_pillow(jpeg)).mean() for jpeg in data.jpegs[:100]]
    psnr = float(np.mean([10 * np.log10(255**2 / max(error, 1e-9)) for error in errors]))
    figure("pixels against Pillow's", psnr, "dB")
    assert psnr > 40
