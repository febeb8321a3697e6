"""Time of the model's own step: against the same computation written directly, and with each image encoded once.

No Ray and no loader: forward, backward and update on batches in memory, kinds taking turns in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from jobs.config import JobConfig
from tests.bench.conftest import Figure
from tests.jobs.conftest import ROOT
from vlmodel.config import dump, load, parse
from vlmodel.model import ModelConfig, VLConfig, VLModel
from vlmodel.parts import Vocabulary

ROUNDS, STEPS, LABELS, WORDS = 7, 2, 1000, 3000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Batch = dict[str, Tensor]


class Direct(nn.Module):
    """ResNet, BERT and a Transformer over both, as one writes it with torchvision, transformers and torch.nn."""

    def __init__(self, resnet: str, bert: BertConfig, width: int, heads: int, rounds: int, labels: int) -> None:
        super().__init__()
        net = torchvision.models.get_model(resnet, weights=None)
        channels = net.fc.in_features
        self.backbone = nn.Sequential(*list(net.children())[:-2])
        self.backbone.to(memory_format=torch.channels_last)
        self.bert = BertModel(bert, add_pooling_layer=False)
        self.vision, self.language = nn.Linear(channels, width), nn.Linear(bert.hidden_size, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.fusion = nn.TransformerEncoder(layer, rounds, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, labels)
        self.normalize = torchvision.transforms.Normalize(MEAN, STD)

    def forward(self, batch: Batch) -> Tensor:
        pixels = self.normalize(batch["pixels_BHWC"].permute(0, 3, 1, 2).float() / 255)
        grid = self.vision(self.backbone(pixels).flatten(2).transpose(1, 2))
        text = self.language(self.bert(batch["input_ids_NT"], attention_mask=batch["text_mask_NT"]).last_hidden_state)
        x = torch.cat([text, grid[batch["text_image_N"]]], dim=1)
        padding = torch.cat([~batch["text_mask_NT"], torch.zeros(x.shape[0], grid.shape[1], dtype=torch.bool)], dim=1)
        return F.cross_entropy(self.head(self.fusion(x, src_key_padding_mask=padding)[:, 0]), batch["labels_N"])


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


def ours(tree: ModelConfig, labels: int) -> VLModel:
    names = {i: str(i) for i in range(labels)}
    config = VLConfig(vocab_size=WORDS, id2label=names, label2id={name: i for i, name in names.items()})
    config.model = dump(tree.resolve(Vocabulary(WORDS, 0, labels)))
    return VLModel(config).train()


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
    for run in kinds.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, run in kinds.items():
            found[name].append(run())
    return {name: statistics.median(values) for name, values in found.items()}


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
    model = ours(parse(ModelConfig, tree), LABELS)
    assert model.language is not None
    bert: Any = model.language.encoder
    direct = Direct(resnet, bert.config, 256, 4, 2, LABELS).train()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in direct.parameters())
    batch = batch_of(images, size, 5, 16, LABELS)

    def loss_of_model() -> Tensor:
        loss = model(**batch).loss
        assert loss is not None
        return loss

    medians = taking_turns({"ours": stepper(model, loss_of_model), "direct": stepper(direct, lambda: direct(batch))})
    figure(
        f"model step, {resnet} + BERT of {depth} layers", medians["ours"], "s",
        peer="torchvision + transformers + nn.TransformerEncoder", peer_value=medians["direct"],
    )  # fmt: skip
    assert medians["ours"] > 0


def test_an_image_once_for_all_its_questions(figure: Figure) -> None:
    config = load(JobConfig, ROOT / "jobs/configs/easy_vqa.toml", [])
    model = ours(config.model, 13)
    # easy-VQA has 9.6 questions an image, of at most 11 tokens.
    once = batch_of(config.train.batch // 2, config.processor.image_size, 9.6, 11, 13)
    pairs = {
        **once,
        "pixels_BHWC": once["pixels_BHWC"][once["text_image_N"]],
        "text_image_N": torch.arange(len(once["labels_N"])),
    }

    def loss_of(batch: Batch) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            found = model(**batch).loss
            assert found is not None
            return found

        return loss

    medians = taking_turns({"once": stepper(model, loss_of(once)), "pairs": stepper(model, loss_of(pairs))})
    figure(
        "model step, each image once for its 9.6 questions", medians["once"], "s",
        peer="each image once per question", peer_value=medians["pairs"],
    )  # fmt: skip
    assert medians["once"] > 0
