"""What a GPU gives: the training step in each precision, and JPEGs decoded there, against what stands beside it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipelines.data.stream.augment import AugmentConfig
from pipelines.data.stream.config import StreamConfig
from pipelines.data.stream.dataset import enable_gpu_decoding
from pipelines.data.stream.loader import MicroBatches
from pipelines.data.stream.plan import StepSchedule
from pipelines.data.stream.stream import stream_batches
from pipelines.train.config import OptimizerConfig, StepConfig
from pipelines.train.prefetcher import DevicePrefetcher
from pipelines.train.step import TrainStep
from tests.bench.conftest import Figure
from tests.bench.model_steps import Batch, Direct, batch_of, create_initial_model
from tests.bench.photographs import Data, photograph, write
from tests.bench.test_stream import by_ours, dataloader
from vlmodel.config import parse_config
from vlmodel.images.decoders.cpu import decode_image
from vlmodel.images.decoders.gpu import decode_jpegs_on_gpu
from vlmodel.images.resize import ImageResizing
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

DEVICE = "cuda"
IMAGES, TEXTS, SIZE, LABELS, ROUNDS, STEPS, JPEGS = 64, 5, 224, 1000, 5, 10, 1024
TREE: dict[str, Any] = {
    "vision": {"name": "resnet50", "position": "none"},
    "language": {"width": 768, "depth": 12, "heads": 12, "dropout": 0.0},
    "fusion": {"width": 256, "heads": 4, "rounds": 2, "dropout": 0.0},
}


def seconds(run: Callable[[], object], times: int = STEPS) -> float:
    """Of one run, when the GPU is done."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(times):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / times


def taking_turns(kinds: dict[str, Callable[[], object]], times: int = STEPS) -> dict[str, float]:
    for run in kinds.values():
        seconds(run, 3)
    rounds = [{name: seconds(run, times) for name, run in kinds.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(found[name] for found in rounds) for name in kinds}


def by_hand(bert: Any, batch: Batch, autocast: bool) -> Callable[[], object]:
    """The least that a step is: forward, backward, update."""
    model = Direct("resnet50", bert, 256, 4, 2, LABELS).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = model(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def test_training_step(figure: Figure) -> None:
    """ResNet-50 and BERT-base, 64 images of 224 x 224 with 5 texts each, with clipping and the check of the loss."""
    batch = {name: t.cuda() for name, t in batch_of(IMAGES, SIZE, TEXTS, 32, LABELS).items()}
    settings = {
        "fp32": StepConfig(),
        "bf16": StepConfig(precision="bf16"),
        "bf16, compiled": StepConfig(precision="bf16", compile=True),
    }
    kinds: dict[str, Callable[[], object]] = {}
    bert: Any = None
    for name, config in settings.items():
        model = create_initial_model(parse_config(ModelConfig, TREE), LABELS)
        model.to(torch.device("cuda"))  # type: ignore[arg-type]
        assert model.language is not None
        language: Any = model.language.encoder
        bert = language.config
        step = TrainStep(model, OptimizerConfig(), config, steps=10_000, seed=0)
        kinds[name] = partial(step, 0, [batch], 1)
    kinds["bf16 by hand"] = by_hand(bert, batch, autocast=True)
    kinds["fp32 by hand"] = by_hand(bert, batch, autocast=False)
    medians = taking_turns(kinds)
    for name in settings:
        peer = f"{name.partition(',')[0]} by hand"
        figure(f"GPU step, {name}", IMAGES / medians[name], "images/s", peer=peer, peer_value=IMAGES / medians[peer])
    assert min(medians.values()) > 0


def matrix_rate(side: int = 8192) -> float:
    """Operations a second in a product of two square bf16 matrices: what the chip can do, as measured."""
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / taking_turns({"product": lambda: a @ b})["product"]


def operations(step: Callable[[], object]) -> int:
    """Of the matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def contiguous(model: VLModel) -> VLModel:
    """The same model with its backbone's maps laid out channel by channel."""
    vision: Any = model.vision
    vision.backbone.to(memory_format=torch.contiguous_format)
    vision.backbone.register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
    return model


def step_of(tree: dict[str, Any], batch: Batch, compiled: bool = False) -> tuple[Callable[[], object], VLModel]:
    """A step in bf16, and its model."""
    torch.manual_seed(0)
    model = create_initial_model(parse_config(ModelConfig, tree), LABELS)
    model.to(torch.device(DEVICE))  # type: ignore[arg-type]
    step = TrainStep(model, OptimizerConfig(), StepConfig(precision="bf16", compile=compiled), steps=10_000, seed=0)
    return partial(step, 0, [batch], 1), model


def test_what_each_setting_brings(figure: Figure) -> None:
    """Compiling, channels-last (which every backbone is in), a frozen backbone, and its features kept."""
    batch = {name: t.to(DEVICE) for name, t in batch_of(IMAGES, SIZE, TEXTS, 32, LABELS).items()}
    frozen = {**TREE, "vision": {**TREE["vision"], "frozen": True}}
    steps = {"bf16": step_of(TREE, batch)[0]}
    steps["compiled"] = step_of(TREE, batch, compiled=True)[0]
    steps["not channels-last"], model = step_of(TREE, batch)
    contiguous(model)
    steps["backbone frozen"], model = step_of(frozen, batch)
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        features = {**batch, "image.features_BF": model.vision.compute_features(batch["image.pixels_BHWC"]).float()}
    del features["image.pixels_BHWC"]
    steps["backbone frozen, its features kept"] = step_of(frozen, features)[0]
    medians = taking_turns(dict(steps))
    for name in steps:
        rate = IMAGES / medians[name]
        figure(f"GPU step, {name}", rate, "images/s", peer="bf16", peer_value=IMAGES / medians["bf16"])
    assert min(medians.values()) > 0


def measured(images: int, compiled: bool) -> tuple[float, int, int]:
    """Seconds of a step, its operations, and the bytes that it took at its peak."""
    batch = {name: t.to(DEVICE) for name, t in batch_of(images, SIZE, TEXTS, 32, LABELS).items()}
    count = operations(step_of(TREE, batch)[0])
    step = step_of(TREE, batch, compiled)[0]
    torch.cuda.reset_peak_memory_stats()
    return taking_turns({"step": step}, times=3)["step"], count, torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_largest_batch(compiled: bool, figure: Figure) -> None:
    """Twice as many images until the memory is full: images/s, share of the chip's matrix rate, peak of memory."""
    rate, images = matrix_rate(), IMAGES
    while True:
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        try:
            taken, count, peak = measured(images, compiled)
        except torch.OutOfMemoryError:
            break
        kind = f"GPU step, bf16{', compiled' if compiled else ''}, {images} images"
        figure(kind, images / taken, "images/s")
        figure(f"{kind}: matrix operations", count / taken / 1e12, "Tflop/s", limit=rate / 1e12)
        figure(f"{kind}: peak of memory", peak / 1e9, "GB")
        images *= 2
    assert images > IMAGES


class Consumer:
    """Takes batches where a training worker would, to the memory of its GPU."""

    def __init__(self, data: Data) -> None:
        torch.set_num_threads(1)
        self._data, self._device = data, torch.device("cuda")

    def ours(self, config: StreamConfig) -> float:
        """Images a second after the first batch."""
        source: Any = self._data.source
        if config.decoding == "gpu":
            source = enable_gpu_decoding(source, str(self._device))
        parts = MicroBatches(source, StepSchedule(source.plan_order(shuffle=True), IMAGES, 1), 0, 1, 1, AugmentConfig())
        feed = DevicePrefetcher(stream_batches(parts, config), self._device)
        next(feed)
        begun, done = time.perf_counter(), sum(len(arrays["row_B"]) for arrays, _ in feed)
        torch.cuda.synchronize()
        return done / (time.perf_counter() - begun)

    def dataloader(self, workers: int) -> float:
        return dataloader(self._data, by_ours(self._data.source), workers)


def test_stream(tmp_path: Path, ray_local: None, figure: Figure) -> None:
    """From tars to batches in the GPU's memory: exact order, checked bytes, token ids."""
    actor: Any = ray.remote(num_cpus=0, num_gpus=1)(Consumer)
    consumer = actor.remote(write(tmp_path, 12_000, SIZE))
    cores = len(os.sched_getaffinity(0))
    ours = {f"{n} threads": StreamConfig(workers=n, tasks=4) for n in (2, 8, cores)}
    # Processes are up from the second of three rounds on.
    ours[f"{cores - 2} processes"] = StreamConfig(decoding="processes", workers=cores - 2, tasks=4)
    ours["decoding=gpu"] = StreamConfig(decoding="gpu", workers=4, tasks=6)
    rounds = [
        {name: ray.get(consumer.ours.remote(config)) for name, config in ours.items()}
        | {"dataloader": ray.get(consumer.dataloader.remote(cores))}
        for _ in range(3)
    ]
    medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    peer = f"webdataset + DataLoader of {cores} workers, our decoder"
    for name in ours:
        figure(f"stream to the GPU, {name}", medians[name], "images/s", peer=peer, peer_value=medians["dataloader"])
    assert min(medians.values()) > 0


def test_jpeg_decoding(figure: Figure) -> None:
    """Files of 500 x 375 to batches of 224 x 224 in the GPU's memory."""
    rng = np.random.default_rng(0)
    pool = [photograph(rng) for _ in range(64)]
    files = [pool[n % len(pool)] for n in range(JPEGS)]

    def on_gpu() -> torch.Tensor:
        for begin in range(0, JPEGS, IMAGES):
            batch = np.empty((IMAGES, SIZE, SIZE, 3), np.uint8)
            done = decode_jpegs_on_gpu(
                files[begin : begin + IMAGES], ImageResizing((SIZE, SIZE)), 10**8, torch.device("cuda"), list(batch)
            )
            assert done.all()
            out = torch.from_numpy(batch).pin_memory().cuda(non_blocking=True)
        return out

    def on_cpu(threads: int) -> Callable[[], torch.Tensor]:
        workers = ThreadPoolExecutor(threads)

        square = ImageResizing((SIZE, SIZE))

        def run() -> torch.Tensor:
            for begin in range(0, JPEGS, IMAGES):
                batch = np.empty((IMAGES, SIZE, SIZE, 3), np.uint8)
                list(workers.map(lambda n: decode_image(files[begin + n], square, 10**8, batch[n]), range(IMAGES)))  # noqa: B023
                out = torch.from_numpy(batch).pin_memory().cuda(non_blocking=True)
            return out

        return run

    torch.set_num_threads(1)
    kinds = {"gpu": on_gpu} | {f"{n} threads": on_cpu(n) for n in (1, 2, 4, 8, 16)}
    medians = {name: JPEGS / s for name, s in taking_turns(dict(kinds), times=1).items()}
    error = (on_gpu().float() - on_cpu(4)().float()).square().mean()
    for name, value in medians.items():
        figure(f"JPEGs to the GPU, {name}", value, "images/s", peer="2 threads", peer_value=medians["2 threads"])
    figure("pixels decoded on the GPU against the CPU's", float(10 * torch.log10(255**2 / error)), "dB")
    assert min(medians.values()) > 0
