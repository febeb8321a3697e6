"""What the benchmarks of the model's own step share: models, batches, and steps that take turns. No Ray, no loader."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from vlmodel.config import dump
from vlmodel.model import ModelConfig, VLConfig, VLModel
from vlmodel.parts import Vocabulary

ROUNDS, STEPS, WORDS = 7, 2, 3000

Batch = dict[str, Tensor]


def batch_of(images: int, size: int, texts: float, longest: int, labels: int) -> Batch:
    """Random images with ``texts`` texts each, of 4 to ``longest`` tokens."""
    rng = np.random.default_rng(0)
    count = round(images * texts)
    lengths = rng.integers(4, longest + 1, count)
    return {
        "pixels_BHWC": torch.from_numpy(rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8)),
        "input_ids_NT": torch.from_numpy(rng.integers(5, WORDS, (count, longest))),
        "text_mask_NT": torch.from_numpy(np.arange(longest) < lengths[:, None]),
        "text_image_N": torch.from_numpy(np.sort(np.arange(count) % images)),
        "labels_N": torch.from_numpy(rng.integers(0, labels, count)),
    }


def new_model(tree: ModelConfig, labels: int) -> VLModel:
    """A model for so many answers, ready to train."""
    names = {i: str(i) for i in range(labels)}
    config = VLConfig(vocab_size=WORDS, id2label=names, label2id={name: i for i, name in names.items()})
    config.model = dump(tree.resolve(Vocabulary(WORDS, 0, labels)))
    return VLModel(config).train()


def loss_of(model: VLModel, batch: Batch) -> Callable[[], Tensor]:
    """The loss of a forward pass."""

    def loss() -> Tensor:
        found = model(**batch).loss
        assert found is not None
        return found

    return loss


def stepper(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], float]:
    """Seconds of a step, the median of some."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step() -> float:
        begun = time.perf_counter()
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begun

    return lambda: statistics.median(step() for _ in range(STEPS))


def taking_turns(kinds: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Median seconds of each kind, after one round that is not measured."""
    for run in kinds.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, run in kinds.items():
            found[name].append(run())
    return {name: statistics.median(values) for name, values in found.items()}
