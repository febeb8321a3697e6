"""Time of a step of the model with a frozen backbone: on kept features against on images, taking turns."""

from __future__ import annotations

import torch

from tests.bench.conftest import Figure
from tests.bench.model_steps import batch_of, create_initial_model, loss_of, stepper, taking_turns
from vlmodel.config import parse_config
from vlmodel.model_config import ModelConfig


def test_a_frozen_backbone_once(figure: Figure) -> None:
    torch.manual_seed(0)
    tree = {
        "vision": {"name": "resnet18", "frozen": True, "projection": 256},
        "language": {"width": 256, "depth": 2, "heads": 4, "dropout": 0.0},
        "fusion": {"width": 256, "heads": 4, "rounds": 2, "dropout": 0.0},
    }
    model = create_initial_model(parse_config(ModelConfig, tree), 13)
    images = batch_of(16, 128, 5, 16, 13)
    features = {**images, "image.features_BF": model.vision.compute_features(images["image.pixels_BHWC"])}
    del features["image.pixels_BHWC"]

    batches = {"images": images, "features": features}
    medians = taking_turns({kind: stepper(model, loss_of(model, batch)) for kind, batch in batches.items()})
    figure(
        "model step, frozen resnet18 at 128 pixels, kept features", medians["features"], "s",
        peer="the same on images", peer_value=medians["images"],
    )  # fmt: skip
    assert medians["features"] > 0
