"""Time of a step of the model with a frozen backbone: on kept features against on images, taking turns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.bench.conftest import Figure
from tests.bench.test_model_step import Batch, batch_of, ours, stepper, taking_turns
from vlmodel.config import parse
from vlmodel.model import ModelConfig


def test_a_frozen_backbone_once(figure: Figure) -> None:
    torch.manual_seed(0)
    tree = {
        "vision": {"name": "resnet18", "frozen": True, "projection": 256},
        "language": {"width": 256, "depth": 2, "heads": 4, "dropout": 0.0},
        "fusion": {"width": 256, "heads": 4, "rounds": 2, "dropout": 0.0},
    }
    model = ours(parse(ModelConfig, tree), 13)
    images = batch_of(16, 128, 5, 16, 13)
    features = {**images, "features_BF": model.vision.features(images["pixels_BHWC"])}
    del features["pixels_BHWC"]

    def loss_of(batch: Batch) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            found = model(**batch).loss
            assert found is not None
            return found

        return loss

    medians = taking_turns({kind: stepper(model, loss_of(batch)) for kind, batch in (("i", images), ("f", features))})
    figure(
        "model step, frozen resnet18 at 128 pixels, kept features", medians["f"], "s",
        peer="the same on images", peer_value=medians["i"],
    )  # fmt: skip
    assert medians["f"] > 0
