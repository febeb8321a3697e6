"""Time of the model's own step: against the same computation written directly, and with each image encoded once.

Forward, backward and update on batches in memory, kinds taking turns in one process.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipelines.workflows.config import JobConfig
from tests.bench.conftest import Figure
from tests.bench.model_steps import Direct, batch_of, create_initial_model, loss_of, stepper, taking_turns
from tests.jobs.conftest import ROOT
from vlmodel.config import load_config, parse_config
from vlmodel.model_config import ModelConfig

LABELS = 1000


@pytest.mark.parametrize(
    ("resnet", "depth", "width", "heads", "images", "size"),
    [("resnet18", 2, 256, 4, 16, 128), ("resnet50", 12, 768, 12, 4, 224)],
)
def test_against_torchvision_and_transformers(
    resnet: str, depth: int, width: int, heads: int, images: int, size: int, figure: Figure
) -> None:
    torch.manual_seed(0)
    tree: dict[str, Any] = {
        "vision": {"name": resnet, "position": "none"},
        "language": {"width": width, "depth": depth, "heads": heads, "dropout": 0.0},
        "fusion": {"width": 256, "heads": 4, "rounds": 2, "dropout": 0.0},
    }
    model = create_initial_model(parse_config(ModelConfig, tree), LABELS)
    assert model.language is not None
    bert: Any = model.language.encoder
    direct = Direct(resnet, bert.config, 256, 4, 2, LABELS).train()
    direct.take(model)
    batch = batch_of(images, size, 5, 16, LABELS)
    with torch.no_grad():
        torch.testing.assert_close(direct(batch), model(**batch).loss, rtol=1e-4, atol=1e-4)
    medians = taking_turns(
        {"ours": stepper(model, loss_of(model, batch)), "direct": stepper(direct, lambda: direct(batch))}
    )
    figure(
        f"model step, {resnet} + BERT of {depth} layers", medians["ours"], "s",
        peer="torchvision + transformers + nn.TransformerEncoder", peer_value=medians["direct"],
    )  # fmt: skip
    assert medians["ours"] > 0


def test_an_image_once_for_all_its_questions(figure: Figure) -> None:
    config = load_config(JobConfig, ROOT / "jobs/configs/easy_vqa.toml", [])
    model = create_initial_model(config.model, 13)
    # easy-VQA has 9.6 questions an image, of at most 11 tokens.
    once = batch_of(config.train.batch // 2, config.processor.image_size, 9.6, 11, 13)
    pairs = {
        **once,
        "image.pixels_BHWC": once["image.pixels_BHWC"][once["sample_N"]],
        "sample_N": torch.arange(len(once["labels_N"])),
    }
    batches = {"once": once, "pairs": pairs}
    medians = taking_turns({kind: stepper(model, loss_of(model, batch)) for kind, batch in batches.items()})
    figure(
        "model step, each image once for its 9.6 questions", medians["once"], "s",
        peer="each image once per question", peer_value=medians["pairs"],
    )  # fmt: skip
    assert medians["once"] > 0
